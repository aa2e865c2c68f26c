"""Error responses outside a call: in the dialect of the route's family."""

from __future__ import annotations

from tpo_mp.dialects import anthropic_messages, native, openai_chat
from tpo_mp.errors import TpoError
from tpo_mp.http.exchange import Exchange, request_id
from tpo_mp.pipeline.delivery import retry_lines

_ANTHROPIC = ("/v1/messages", "/v1/complete")


def render_error(exchange: Exchange, error: TpoError) -> None:
    """Answer ``error``; status and body have the family's shape."""
    head = exchange.head
    status = error.status
    family = head.endpoint.family if head.endpoint else _family(head.path)
    if family == "openai" and b"anthropic-version" in head.headers:
        family = "anthropic"  # their SDK, at a path that both families have
    # One id for header and body, the caller's or ours: it is what a report will quote.
    name = request_id(head)
    extra = b"%bx-request-id: %b\r\n" % (retry_lines(error), name.encode())
    if family == "native":
        body = native.error_body(error, name)
    elif family == "anthropic":
        status = anthropic_messages.error_status(error)
        body = anthropic_messages.error_body(error, name)
        extra += b"request-id: %b\r\n" % name.encode()
    else:
        body = openai_chat.error_body(error)
    if error.status == 405:
        extra += b"allow: %b\r\n" % error.message.rpartition("use ")[2].encode("latin-1", "replace")
    exchange.respond(status, body, extra=extra)


def _family(path: str) -> str:
    """The family a client of an unknown route most likely belongs to."""
    if path.startswith("/api/"):
        return "native"
    return "anthropic" if path.startswith(_ANTHROPIC) else "openai"
