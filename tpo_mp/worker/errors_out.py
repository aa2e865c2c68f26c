"""Error responses outside a call: in the dialect of the route's family."""

from __future__ import annotations

from tpo_mp.dialects import anthropic_messages, gemini_wire, native, openai_chat
from tpo_mp.errors import Shed, TpoError
from tpo_mp.http.exchange import Exchange, request_id
from tpo_mp.pipeline.delivery import retry_lines
from tpo_mp.ports import Counter, Metrics

_UPGRADE = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
_CHALLENGE = b'www-authenticate: Bearer realm="tpo-mp"\r\n'
_ANTHROPIC = ("/v1/messages", "/v1/complete")


class Refusals:
    """Answers and counts requests that never became a call."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counters: dict[tuple[int, str], Counter] = {}
        text = "Calls shed."
        self._shed = metrics.counter("orchestrator_requests_shed_total", text, stage="admit")

    def answer(self, exchange: Exchange, error: TpoError) -> None:
        """Answer ``error`` in the dialect of the request's family."""
        key = (error.status, error.reason)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._metrics.counter(
                "tpo_refused_requests_total", "Requests refused before they became a call.",
                code=str(key[0]), reason=key[1],
            )  # fmt: skip
        counter.inc()
        if isinstance(error, Shed):
            self._shed.inc()
        render_error(exchange, error)


def render_error(exchange: Exchange, error: TpoError) -> None:
    """Answer ``error``; status and body have the family's shape."""
    head = exchange.head
    status = error.status
    family = head.endpoint.family if head.endpoint else head.family or _family(head.path)
    if family == "openai" and b"anthropic-version" in head.headers:
        family = "anthropic"  # their SDK, at a path that both families have
    # One id for header and body, the caller's or ours: it is what a report will quote.
    name = request_id(head)
    extra = b"%bx-request-id: %b\r\n" % (retry_lines(error), name.encode())
    if family == "native":
        status = native.error_status(error)
        body = native.error_body(error, name)
    elif family == "anthropic":
        status = anthropic_messages.error_status(error)
        body = anthropic_messages.error_body(error, name)
        extra += b"request-id: %b\r\n" % name.encode()
    elif family == "google":
        status = gemini_wire.error_status(error)
        body = gemini_wire.error_body(error, name)
    else:
        body = openai_chat.error_body(error)
    if error.status == 405:
        extra += b"allow: %b\r\n" % error.message.rpartition("use ")[2].encode("latin-1", "replace")
    elif error.status == 426:
        extra += _UPGRADE
    elif error.status == 401:
        extra += _CHALLENGE
    exchange.respond(status, body, extra=extra)


def _family(path: str) -> str:
    """The family a client of an unknown route most likely belongs to."""
    if path.startswith("/api/"):
        return "native"
    if path.startswith("/v1beta/"):
        return "google"
    return "anthropic" if path.startswith(_ANTHROPIC) else "openai"
