"""Documents over HTTP: put there, listed, shown and taken away, each by its own tenant.

They are control's, so every worker answers alike, and outlive every process.

Invariants: another tenant's document does not exist (404); what control does not take is a 503 and
not kept in part; without the stage `rag` there are no documents.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec
from msgspec import Struct

from tpo_mp.dialects import rag_shapes as shapes
from tpo_mp.errors import InvalidRequest, NotFound, OverBudget, Shed
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature
from tpo_mp.store.rag_questions import ASK_S, RAG, RagChange, RagQuestion, sums_of

STAGE: Final = "rag"
_encode = msgspec.json.Encoder().encode


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class RagApi:
    """Routes under ``/api/v1/rag``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway
        self._store = env.store

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        all_, one = "/api/v1/rag/documents", "/api/v1/rag/documents/{document}"
        shown = "/api/v1/rag/documents/$DOCUMENT_ID"
        return [
            Endpoint("POST", all_, self.keep, "native", request=shapes.DocumentRequest,
                     max_body_bytes=0, errors=(404, 429),
                     example={"text": "We open at nine."},
                     outcomes=(Outcome("it can be found", shapes.DocumentKept),)),
            Endpoint("GET", all_, self.page, "native", errors=(404,),
                     parameters=(Parameter("limit", "Most documents; 100 unless given.", int),
                                 Parameter("after", "The `next` of the page before.", int)),
                     outcomes=(Outcome("one page", shapes.DocumentPage),)),
            Endpoint("GET", one, self.one, "native", example_path=shown, errors=(404,),
                     outcomes=(Outcome("the document", shapes.DocumentShown),)),
            Endpoint("DELETE", one, self.forget, "native", example_path=shown, errors=(404,),
                     outcomes=(Outcome("it is gone", shapes.DocumentGone),)),
        ]  # fmt: skip

    async def keep(self, exchange: Exchange) -> None:
        """Keep a document, to be looked up from now on."""
        sent = shapes.decode_document(exchange.body)
        options, tenant = self._options(), self._gateway.tenant(exchange.head)
        text = sent.text.encode("utf-8", "replace")
        if len(text) > shapes.MAX_TEXT_BYTES:
            said = f"text has {len(text)} bytes, of which {shapes.MAX_TEXT_BYTES} may be"
            raise InvalidRequest(said, param="text")
        if not text.strip():
            raise InvalidRequest("text has no words", param="text")
        sums = sums_of(await self._ask(RagQuestion("sums", tenant)) or b"")
        if sums.all_bytes + len(text) > options.max_bytes:
            raise OverBudget("there is no room for more documents", reason="documents_full")
        name = sent.id or uuid.uuid4().hex
        change = RagChange(
            tenant, name, sent.title, most_documents=options.max_documents,
            most_bytes=options.max_bytes,
        )  # fmt: skip
        if not await self._store.put(RAG, change.key(), text, 0.0, ASK_S):
            if sums.documents >= options.max_documents:
                said = (
                    f"you have {sums.documents} documents, of which {options.max_documents} may be"
                )
                raise OverBudget(said, reason="documents_full")
            raise _away()
        self._send(exchange, shapes.DocumentKept(name, sent.title, len(text)))

    async def page(self, exchange: Exchange) -> None:
        """List the caller's documents."""
        self._options()
        query = given.parameters(exchange.head)
        limit = given.whole(query, "limit", 100, least=1, most=1000)
        after = given.whole(query, "after", 0, least=0, most=1 << 62) if "after" in query else 0
        asked = RagQuestion("page", self._gateway.tenant(exchange.head), limit=limit, after=after)
        exchange.respond(200, await self._ask(asked) or b"", extra=id_line(exchange.head))

    async def one(self, exchange: Exchange) -> None:
        """Show one document with its text."""
        exchange.respond(200, await self._found(exchange), extra=id_line(exchange.head))

    async def forget(self, exchange: Exchange) -> None:
        """Take a document away, so that nothing is looked up in it any more."""
        await self._found(exchange)
        name, tenant = exchange.head.params["document"], self._gateway.tenant(exchange.head)
        if "/" in name:
            said = f"{name[:128]!r} is a file of a folder: it goes when the file does"
            raise InvalidRequest(said, reason="document_of_a_folder", param="document")
        change = RagChange(tenant, name, gone=True)
        if not await self._store.put(RAG, change.key(), b"", 0.0, ASK_S):
            raise _away()
        self._send(exchange, shapes.DocumentGone(name, deleted=True))

    async def _found(self, exchange: Exchange) -> bytes:
        self._options()
        name, tenant = exchange.head.params["document"], self._gateway.tenant(exchange.head)
        told = await self._ask(RagQuestion("one", tenant, name))
        if not told:
            raise NotFound(f"no document {name[:128]!r}", reason="document_not_found")
        return told

    async def _ask(self, asked: RagQuestion) -> bytes | None:
        """What control says; raises ``Shed`` when it says nothing."""
        told = await self._gateway.ask_store(RAG, asked.key(), ASK_S)
        if told is None:
            raise _away()
        return told[0]

    def _options(self) -> Any:
        found = self._gateway.config.stages.get(STAGE)
        if found is None:
            raise NotFound("this gateway keeps no documents", reason="rag_disabled")
        return found

    def _send(self, exchange: Exchange, told: object) -> None:
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))


def _away() -> Shed:
    return Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)


FEATURE = Feature(Config, RagApi)
