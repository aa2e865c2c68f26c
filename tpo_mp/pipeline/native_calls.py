"""A native request becomes a call, however it came: body, query or WebSocket message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tpo_mp.dialects import native
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Call

from .gateway import Gateway

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange

DEFAULT_SAMPLING: Final[Mapping[str, object]] = {"max_tokens": 256, "temperature": 0.7}


def sampling_of(
    gateway: Gateway, model: str, max_tokens: int | None, temperature: float | None
) -> dict[str, Any]:
    """What holds for native requests that do not say: what we say, then the backend's kind."""
    said = {"max_tokens": max_tokens, "temperature": temperature}
    ours = {name: value for name, value in said.items() if value is not None}
    return {**DEFAULT_SAMPLING, **gateway.sampling(model), **ours}


def native_call(
    gateway: Gateway,
    exchange: Exchange,
    request: native.PromptRequest,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stream: bool,
) -> Call:
    """Make the call; where neither it nor we say, the backend's kind does.

    Raises ``InvalidRequest``, and what ``Gateway.new_call`` raises."""
    model = request.model or gateway.default_model()
    if model is None:
        raise InvalidRequest("model is required: no backend names one", param="model")
    sampling = sampling_of(gateway, model, max_tokens, temperature)
    body = native.to_chat(request, model, sampling, stream=stream)
    call = gateway.new_call(
        exchange, model=model, body=body, stream=stream, affinity=request.session
    )
    if call.session is None:
        call.session = request.session
    call.usage_wanted = stream
    seconds = request.deadline_secs or request.timeout_seconds
    if seconds is not None:
        call.deadline = min(call.deadline, call.started_at + seconds)
    return call
