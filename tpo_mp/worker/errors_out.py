"""Error responses outside a call: in the dialect of the route's family."""

from __future__ import annotations

from tpo_mp.dialects import native, openai_chat
from tpo_mp.errors import TpoError
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.delivery import retry_lines


def render_error(exchange: Exchange, error: TpoError) -> None:
    """Answer ``error``; the body has the family's shape."""
    head = exchange.head
    path = head.path
    is_native = head.endpoint.family == "native" if head.endpoint else path.startswith("/api/")
    body = native.error_body(error, head.request_id) if is_native else openai_chat.error_body(error)
    extra = retry_lines(error) + id_line(head)
    if error.status == 405:
        extra += b"allow: %b\r\n" % error.message.rpartition("use ")[2].encode("latin-1", "replace")
    exchange.respond(error.status, body, extra=extra)
