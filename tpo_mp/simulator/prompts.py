"""Legacy completions' prompts: one or several, in words or in token numbers, repeated or not.

Each prompt becomes a request of its own; their choices follow each other in the answer.

Source: OpenAI API reference, completions.
Known weakness: ``best_of`` and ``suffix`` are accepted and change nothing; a prompt that ``echo``
repeats has no log probabilities.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from msgspec.structs import replace

from tpo_mp.dialects.body import Fields, parse
from tpo_mp.dialects.canonical import Block, ModelReply, ModelRequest, TextBlock, TokenUsage
from tpo_mp.dialects.codec import Codec
from tpo_mp.errors import InvalidRequest

MOST_PROMPTS: Final = 128
MOST_CHOICES: Final = 128
DEFAULT_TOKENS: Final = 16
"""``max_tokens`` of whoever names none."""


def requests_of(codec: Codec, body: bytes) -> tuple[list[ModelRequest], bool]:
    """A request per prompt, and whether each is repeated; raises ``InvalidRequest``."""
    fields = Fields(parse(body))
    echo = bool(fields.flag("echo"))
    prompts = _prompts(fields.take("prompt"))
    rest = {"max_tokens": DEFAULT_TOKENS} | fields.rest()
    n = rest.get("n")
    if isinstance(n, int) and n * len(prompts) > MOST_CHOICES:
        said = f"prompt and n must not ask for more than {MOST_CHOICES} choices"
        raise InvalidRequest(said, param="n")
    return [_request(codec, rest, prompt) for prompt in prompts], echo


def _request(codec: Codec, rest: dict[str, Any], prompt: str) -> ModelRequest:
    return codec.request_to_canonical(orjson.dumps(rest | {"prompt": prompt}))


def _prompts(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise InvalidRequest("prompt must be a string or an array of prompts", param="prompt")
    if all(isinstance(item, int) for item in given):
        return [_words(given)]
    if len(given) > MOST_PROMPTS:
        raise InvalidRequest(f"prompt must have at most {MOST_PROMPTS} entries", param="prompt")
    return [item if isinstance(item, str) else _words(item) for item in given]


def _words(tokens: Any) -> str:
    """Token numbers as words of a token each: nobody here has a vocabulary."""
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise InvalidRequest("prompt must be strings or arrays of token numbers", param="prompt")
    return " ".join(f"t{token % 100_000}" for token in tokens)


def together(requests: list[ModelRequest], replies: list[ModelReply], echo: bool) -> ModelReply:
    """Several prompts' replies as one."""
    choices = []
    for request, reply in zip(requests, replies, strict=True):
        for choice in reply.choices:
            blocks = choice.blocks
            if echo:
                blocks = tuple(_repeated(request, block) for block in blocks)
            choices.append(replace(choice, blocks=blocks))
    counts = [reply.usage or TokenUsage() for reply in replies]
    usage = TokenUsage(
        sum(count.prompt for count in counts), sum(count.completion for count in counts)
    )
    return replace(replies[0], choices=tuple(choices), usage=usage)


def _repeated(request: ModelRequest, block: Block) -> Block:
    if not isinstance(block, TextBlock):
        return block
    prompt = "".join(b.text for b in request.messages[0].blocks if isinstance(b, TextBlock))
    return TextBlock(prompt + block.text)
