"""OpenAI legacy completions: whole requests and replies to and from the canonical model.

Source: OpenAI API reference, completions.  A prompt is one user message without a template, so
only such a conversation becomes a prompt: inventing a template would change what the model sees.
"""

from __future__ import annotations

from typing import Any

import orjson

from tpo_mp.errors import InvalidRequest

from .body import Fields, parse, texts, wrong
from .canonical import (
    Message,
    ModelReply,
    ModelRequest,
    RefusalBlock,
    ReplyChoice,
    TextBlock,
    Trait,
    own_id,
    require,
    short_user,
)
from .failure import bad_body
from .openai_wire import FINISH_OF_STOP, STOP_OF_FINISH, usage_in, usage_out

NAME = "openai_completions"
ID = "cmpl-"

CARRIES = frozenset(
    (Trait.CHOICES, Trait.SEED, Trait.STOP, Trait.TOP_K, Trait.FREQUENCY_PENALTY,
     Trait.PRESENCE_PENALTY, Trait.LOGIT_BIAS, Trait.LOGPROBS, Trait.HOT)
)  # fmt: skip
APPROXIMATES = {
    Trait.TOP_K: "sent as `top_k`, which OpenAI-compatible engines read and OpenAI refuses",
    Trait.LOGPROBS: "tokens and their values; bytes are recomputed",
}
NAMES = {
    Trait.CHOICES: "n", Trait.SEED: "seed", Trait.STOP: "stop", Trait.TOP_K: "top_k",
    Trait.FREQUENCY_PENALTY: "frequency_penalty", Trait.PRESENCE_PENALTY: "presence_penalty",
    Trait.LOGIT_BIAS: "logit_bias", Trait.LOGPROBS: "logprobs", Trait.HOT: "temperature",
}  # fmt: skip


def request_to_canonical(body: bytes) -> ModelRequest:
    """Read a whole request; raises ``InvalidRequest`` naming the field."""
    fields = Fields(parse(body))
    options = fields.table("stream_options")
    prompt = fields.take("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        said = "prompt cannot be translated: only one prompt, and in words, can"
        raise InvalidRequest(said, reason="unsupported_translation", param="prompt")
    if fields.flag("echo"):
        raise InvalidRequest(
            "echo cannot be translated", reason="unsupported_translation", param="echo"
        )
    best_of = fields.whole("best_of")
    known: dict[str, Any] = {
        "model": fields.need_text("model"),
        "max_tokens": fields.whole("max_tokens"),
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.whole("top_k"),
        "stop": texts(fields.take("stop"), "stop"),
        "n": fields.whole("n"),
        "seed": fields.whole("seed"),
        "frequency_penalty": fields.number("frequency_penalty"),
        "presence_penalty": fields.number("presence_penalty"),
        "logit_bias": fields.table("logit_bias"),
        "logprobs": fields.whole("logprobs"),
        "user": fields.text("user"),
        "stream": bool(fields.flag("stream")),
    }
    extra = fields.rest()
    if best_of is not None and best_of > (known["n"] or 1):
        extra["best_of"] = best_of
    return ModelRequest(
        source=NAME,
        names=NAMES,
        messages=(Message("user", (TextBlock(prompt),), "prompt"),),
        usage_wanted=bool(options and options.get("include_usage")),
        extra=extra,
        **known,
    )


def request_from_canonical(request: ModelRequest) -> bytes:
    """Write a whole request; raises ``InvalidRequest`` for what a prompt cannot say."""
    require(request, NAME, CARRIES)
    out: dict[str, Any] = {"model": request.model, "prompt": _prompt(request)}
    options = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": list(request.stop) or None,
        "n": request.n,
        "seed": request.seed,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "logit_bias": request.logit_bias,
        "logprobs": request.logprobs,
        "user": short_user(request.user),
    }
    out |= {name: value for name, value in options.items() if value is not None}
    if request.source == NAME:
        out |= request.extra
    if request.stream:
        out |= {"stream": True, "stream_options": {"include_usage": True}}
    return orjson.dumps(out)


def _prompt(request: ModelRequest) -> str:
    message = request.messages[0] if request.messages else Message("user", ())
    if message.role != "user":
        raise InvalidRequest(
            "only a user's message can become a prompt",
            reason="unsupported_translation",
            param=f"{message.path}.role",
        )
    return "".join(block.text for block in message.blocks if isinstance(block, TextBlock))


# -- replies ----------------------------------------------------------------------------------


def reply_to_canonical(body: bytes) -> ModelReply:
    """Read an upstream's whole reply; raises ``BackendFailure`` when it is not one."""
    try:
        fields = Fields(parse(body))
        usage = fields.table("usage")
        choices = fields.items("choices")
        fields.take("object")
        return ModelReply(
            id=fields.text("id") or "",
            model=fields.text("model") or "",
            created=fields.seconds("created"),
            choices=tuple(_choice(c, f"choices[{i}]") for i, c in enumerate(choices)),
            usage=usage_in(Fields(usage, "usage")) if usage else None,
            source=NAME,
            extra=fields.rest(),
        )
    except InvalidRequest as e:
        raise bad_body(f"no completion: {e.message}") from None


def _choice(choice: object, path: str) -> ReplyChoice:
    fields = Fields(choice, path)
    finish = fields.text("finish_reason")
    stop = STOP_OF_FINISH.get(finish, "end") if finish else None
    logprobs = logprobs_in(fields.table("logprobs"), fields.at("logprobs"))
    words = fields.text("text") or ""
    return ReplyChoice((TextBlock(words),) if words else (), stop, None, logprobs)


def reply_from_canonical(
    reply: ModelReply,
    request: ModelRequest | None = None,  # noqa: ARG001 - every codec's signature
) -> bytes:
    """Write a whole reply; thoughts and tool calls have no place in it."""
    out: dict[str, Any] = {
        "id": own_id(reply.id, ID),
        "object": "text_completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [_choice_out(i, choice) for i, choice in enumerate(reply.choices)],
    }
    if reply.usage is not None:
        out["usage"] = usage_out(reply.usage)
    return orjson.dumps(out | (reply.extra if reply.source == NAME else {}))


def _choice_out(index: int, choice: ReplyChoice) -> dict[str, Any]:
    words = [b.text for b in choice.blocks if isinstance(b, TextBlock | RefusalBlock)]
    return {
        "text": "".join(words),
        "index": index,
        "logprobs": None if choice.logprobs is None else logprobs_out(choice.logprobs, 0),
        "finish_reason": None if choice.stop is None else finish_of(FINISH_OF_STOP[choice.stop]),
    }


def finish_of(finish: str) -> str:
    """The finish reason; tools do not exist here."""
    return "stop" if finish == "tool_calls" else finish


def logprobs_in(value: dict[str, Any] | None, path: str) -> list[dict[str, Any]] | None:
    """The columns of legacy log probabilities as chat's rows."""
    if value is None:
        return None
    fields = Fields(value, path)
    tokens, values = fields.items("tokens"), fields.items("token_logprobs")
    tops = fields.items("top_logprobs")
    if not all(isinstance(token, str) for token in tokens) or len(values) != len(tokens):
        raise wrong(path, "columns of one length")
    return [
        _row(token, values[i]) | {"top_logprobs": _tops(tops[i] if i < len(tops) else None)}
        for i, token in enumerate(tokens)
    ]


def _row(token: str, value: Any) -> dict[str, Any]:
    spelled = list(token.encode("utf-8", "surrogatepass"))
    return {"token": token, "logprob": 0.0 if value is None else value, "bytes": spelled}


def _tops(value: object) -> list[dict[str, Any]]:
    return [_row(token, v) for token, v in value.items()] if isinstance(value, dict) else []


def logprobs_out(rows: list[dict[str, Any]], offset: int) -> dict[str, Any]:
    """Chat's rows as the columns of legacy log probabilities, from a text ``offset`` on."""
    offsets = []
    for row in rows:
        offsets.append(offset)
        offset += len(str(row.get("token", "")))
    return {
        "tokens": [row.get("token", "") for row in rows],
        "token_logprobs": [row.get("logprob") for row in rows],
        "top_logprobs": [
            {top.get("token", ""): top.get("logprob") for top in row.get("top_logprobs") or ()}
            for row in rows
        ],
        "text_offset": offsets,
    }
