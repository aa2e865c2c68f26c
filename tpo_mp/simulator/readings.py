"""A request of any API as conditions read it: its words and its size.

Invariants: nothing is judged here; what cannot be read raises what its answer would.
Known weakness: of several prompts in one completion request, the first is read; token numbers have
no words.
"""

from __future__ import annotations

from tpo_mp.dialects import openai_embeddings
from tpo_mp.dialects.canonical import Message, ModelRequest, TextBlock
from tpo_mp.dialects.codec import Codec
from tpo_mp.types import Call, Dialect

from .prompts import requests_of
from .vectors import texts_of


def reading(codec: Codec, call: Call) -> ModelRequest:
    """The request in canonical form; raises ``Rejected``."""
    if call.dialect is Dialect.OPENAI_COMPLETIONS:
        return requests_of(codec, call.body)[0][0]
    if call.dialect is not Dialect.OPENAI_EMBEDDINGS:
        return codec.request_to_canonical(call.body)
    request = openai_embeddings.decode_request(call.body)
    words = tuple(TextBlock(text) for text in texts_of(request) if isinstance(text, str))
    # As a prompt of a completion, its tokens are counted without what frames a message.
    return ModelRequest(
        source=Dialect.OPENAI_COMPLETIONS,
        model=request.model,
        messages=(Message("user", words),),
        names={},
    )
