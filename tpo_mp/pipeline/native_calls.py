"""A native request becomes a call, however it came: body, query or WebSocket message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpo_mp.dialects import native
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Call

from .gateway import Gateway

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange

MAX_TOKENS = 256
TEMPERATURE = 0.7


def native_call(
    gateway: Gateway,
    exchange: Exchange,
    request: native.PromptRequest,
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    stream: bool,
) -> Call:
    """Make the call; raises ``InvalidRequest``, and what ``Gateway.new_call`` raises."""
    model = request.model or gateway.default_model()
    if model is None:
        raise InvalidRequest("model is required: no backend names one", param="model")
    body = native.to_chat(request, model, max_tokens, temperature, stream=stream)
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
