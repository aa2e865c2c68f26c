"""Embeddings: deterministic vectors of length one, in the size the model has or the client asks.

Equal texts have equal vectors; different texts are as good as orthogonal.  A shorter vector is
the beginning of the whole one, scaled to length one again, as OpenAI's models shorten theirs.

Each component is one of 256 levels of a bell curve, drawn by one byte: so the length is a sum over
bytes, and a level's digits are written once, however many components have it.

Invariants: components are 32-bit floats, so both encodings say the same numbers.
Known weakness: related texts are no nearer than others.
"""

from __future__ import annotations

import base64
import struct
from array import array
from dataclasses import dataclass
from hashlib import shake_128
from math import sqrt
from statistics import NormalDist
from typing import Final

import orjson

from tpo_mp.dialects.gemini_request import GeminiEmbedding
from tpo_mp.dialects.openai_embeddings import EmbeddingsRequest
from tpo_mp.errors import InvalidRequest, Rejected

from .catalog import traits_of
from .tokens import count

_BELL: Final = NormalDist(0, 85)
_LEVELS: Final = [round(_BELL.inv_cdf((place + 0.5) / 256)) or 1 for place in range(256)]
"""What a byte stands for: whole numbers from -245 to 245, none of them 0."""
_SQUARE_HIGH: Final = bytes(level * level >> 8 for level in _LEVELS)
_SQUARE_LOW: Final = bytes(level * level & 255 for level in _LEVELS)
MOST_INPUTS = 2048
MOST_TOKENS = 8191
MOST_CONTENTS = 100
"""Contents of one batch of Gemini's."""


def texts_of(request: EmbeddingsRequest) -> list[str | list[int]]:
    """The inputs, each a text or token numbers; raises ``InvalidRequest`` when there are too many
    or one is empty or too long.
    """
    given = request.input
    inputs: list[str | list[int]]
    if isinstance(given, str):
        inputs = [given]
    elif all(isinstance(item, int) for item in given):
        inputs = [[item for item in given if isinstance(item, int)]]
    else:
        if len({type(item) for item in given}) > 1:
            said = "input must be texts, or token numbers, or lists of them, not several of these"
            raise InvalidRequest(said, param="input")
        inputs = [item for item in given if not isinstance(item, int)]
    if len(inputs) > MOST_INPUTS:
        raise InvalidRequest(f"input must have at most {MOST_INPUTS} entries", param="input")
    for index, item in enumerate(inputs):
        if not item:
            raise InvalidRequest(f"input[{index}] must not be empty", param="input")
        if len(item) > 4 * MOST_TOKENS and tokens_of(item) > MOST_TOKENS:
            said = f"input[{index}] has more than the model's {MOST_TOKENS} tokens"
            raise InvalidRequest(said, param="input")
    return inputs


def tokens_of(item: str | list[int]) -> int:
    """Count an input's tokens."""
    return count(item) if isinstance(item, str) else len(item)


def size_of(request: EmbeddingsRequest) -> int:
    """How long each vector is; raises ``Rejected`` when the model cannot."""
    traits = traits_of(request.model)
    if traits.kind in ("chat", "completion"):
        said = "You are not allowed to generate embeddings from this model"
        raise Rejected(said, reason="model_not_supported", param="model", status=403)
    wanted = request.dimensions
    if wanted is None:
        return traits.dimensions
    if not traits.shortens:
        said = "This model does not support specifying dimensions."
        raise InvalidRequest(said, param="dimensions")
    if wanted > traits.dimensions:
        said = f"dimensions must be at most {traits.dimensions} for this model"
        raise InvalidRequest(said, param="dimensions")
    return wanted


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector as places in a table of its 256 possible components."""

    places: bytes
    components: array[float]

    def json(self) -> bytes:
        """The components as a JSON array."""
        # Written once per possible component: most of a vector's cost is its digits.
        told = orjson.dumps(self.components.tolist())[1:-1].split(b",")
        return b"[%b]" % b",".join(map(told.__getitem__, self.places))

    def packed(self) -> bytes:
        """The components as little-endian 32-bit floats."""
        table = struct.pack("<256f", *self.components)
        cells = [table[at : at + 4] for at in range(0, len(table), 4)]
        return b"".join(map(cells.__getitem__, self.places))


def vector(seed: int, model: str, item: str | list[int], size: int) -> Vector:
    """The vector of one input."""
    told = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else orjson.dumps(item)
    # Shortening takes the beginning, so the draws must not depend on the size: shake's do not.
    drawn = shake_128(b"%d\0%b\0%b" % (seed, model.encode(), told)).digest(size)
    squares = 256 * sum(drawn.translate(_SQUARE_HIGH)) + sum(drawn.translate(_SQUARE_LOW))
    length = sqrt(squares)
    return Vector(drawn, array("f", [level / length for level in _LEVELS]))


def entry(request: EmbeddingsRequest, index: int, vector: Vector) -> bytes:
    """One object of the answer's list, in the encoding the client asked for."""
    if request.encoding_format == "base64":
        told = b'"%b"' % base64.b64encode(vector.packed())
    else:
        told = vector.json()
    return b'{"object":"embedding","index":%d,"embedding":%b}' % (index, told)


def size_of_content(asked: GeminiEmbedding) -> int:
    """How long the vector of one of Gemini's contents is; raises ``InvalidRequest``."""
    traits = traits_of(asked.model)
    if traits.kind in ("chat", "completion"):
        said = f"models/{asked.model} is not found or is not supported for embedContent"
        raise Rejected(said, reason="model_not_supported", status=404)
    if asked.dimensions is not None and asked.dimensions > traits.dimensions:
        said = f"outputDimensionality must be at most {traits.dimensions} for this model"
        raise InvalidRequest(said, param="outputDimensionality")
    return asked.dimensions or traits.dimensions


def check_content(asked: GeminiEmbedding, among: int) -> None:
    """Refuse a content without words or with too many, or too many contents."""
    if among > MOST_CONTENTS:
        said = f"at most {MOST_CONTENTS} requests can be in one batch"
        raise InvalidRequest(said, param="requests")
    most = traits_of(asked.model).context or MOST_TOKENS
    if not asked.text or tokens_of(asked.text) > most:
        said = f"{asked.path} must have from 1 to {most} tokens"
        raise InvalidRequest(said, param=asked.path)


def answer(model: str, listed: list[bytes], tokens: int) -> bytes:
    """The whole answer around its encoded entries."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    tail = orjson.dumps({"model": model, "usage": usage})
    return b'{"object":"list","data":[%b],%b' % (b",".join(listed), tail[1:])
