"""A native request becomes a call, however it came: body, query or WebSocket message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpo_mp.dialects import native
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Call

from .gateway import Gateway

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange


def told(gateway: Gateway, model: str) -> dict[str, object]:
    """What a native request that says nothing is told, as the model's first backend wants it."""
    return {**native.SAMPLING, **gateway.sampling(model)}


def native_call(
    gateway: Gateway,
    exchange: Exchange,
    request: native.PromptRequest,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stream: bool,
) -> Call:
    """Make the call; where neither it nor we say, the kind of the backend that is asked does.

    Raises ``InvalidRequest``, and what ``Gateway.new_call`` raises."""
    model = request.model or gateway.default_model()
    if model is None:
        raise InvalidRequest("model is required: no backend names one", param="model")
    wanted = request.max_tokens or max_tokens
    said: dict[str, object] = {} if wanted is None else {"max_tokens": wanted}
    warmth = temperature if request.temperature is None else request.temperature
    if warmth is not None:
        said["temperature"] = warmth
    all_told = told(gateway, model)
    prompt = request.prompt or request.input or ""
    body = native.to_chat(prompt, model, all_told | said, stream=stream)
    call = gateway.new_call(
        exchange, model=model, body=body, stream=stream, affinity=request.session
    )
    if call.session is None:
        call.session = request.session
    call.usage_wanted = stream
    call.unsaid = tuple(name for name in all_told if name not in said)
    seconds = request.deadline_secs or request.timeout_seconds
    if seconds is not None:
        call.deadline = min(call.deadline, call.started_at + seconds)
    return call
