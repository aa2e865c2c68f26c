"""Looks up what is known about a question, and tells the model before it answers.

The documents are those that the caller's tenant put there (``/api/v1/rag/documents``) and the files
of its folders.  Control has them in a full-text index and looks the words of the question up in its
store's thread, so no worker's loop waits on a disk: it asks over its ring and serves other calls
meanwhile.  What is found goes into the request, the best first, until ``max_context_tokens`` are
full, and is named in the answer as ``tpo.citations``.

With ``rerank``, more pieces are looked up than are told, and put into order by the meaning of their
texts (``pipeline.reranking``), in what is left of the same time.

A question that gets no answer within ``timeout_s``, or before its deadline, is asked of the model
without context.

Invariants: nothing of another tenant's is ever seen; a request about which nothing is known goes
on byte for byte; without this stage nothing is looked up at all.
Known weakness: what shares no word with the question is not found, also with a rerank; a token is
taken for four bytes.  Megabytes of words hold the loop for a millisecond each; pictures and files
are not read (``dialects.set_aside``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta, Struct

from tpo_mp.dialects.prompt_context import ASKING, question_of, with_context
from tpo_mp.dialects.set_aside import SetAside
from tpo_mp.errors import ConfigError
from tpo_mp.pipeline.citing import cite
from tpo_mp.pipeline.reranking import Reranker
from tpo_mp.ports import Env, Feature, Proceed
from tpo_mp.store.rag_questions import RAG, Hit, RagQuestion, hits_of
from tpo_mp.types import Call, Dialect, Phase, Reply

BYTES_PER_TOKEN: Final = 4
_SUCCESS: Final = range(200, 300)
_LEAD: Final = (
    "These excerpts may help to answer. Rely on them where they do, and name them by their number."
)


class Folder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder whose files are documents."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$(?!\n)",
        description="Unique name; ids of its documents begin with it and a slash.")]  # fmt: skip
    path: Annotated[str, Meta(min_length=1,
        description="Where it is; absolute, or beginning with ~.")]  # fmt: skip
    tenant: Annotated[str, Meta(max_length=256,
        description="Whose documents they are; empty: everybody's, where no key is asked for.",
    )] = ""  # fmt: skip


class Rerank(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which backend's embeddings put into order what words found."""

    backend: Annotated[str, Meta(min_length=1, description="Name of a backend with embeddings.")]
    model: Annotated[str, Meta(min_length=1, max_length=256,
        description="Model it is asked for.")]  # fmt: skip
    candidates: Annotated[int, Meta(ge=2, le=50,
        description="Most pieces put into order, of which `top_k` are told.")] = 12  # fmt: skip
    dimensions: Annotated[Annotated[int, Meta(ge=1, le=8192)] | None, Meta(
        description="Length of its vectors, for models that can choose.")] = None  # fmt: skip


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is looked up, and how much of it the model is told."""

    timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Longest wait for the documents.")
    ] = 5.0
    max_context_tokens: Annotated[
        int, Meta(ge=16, le=1_000_000, description="Most tokens that are put into a request.")
    ] = 2048
    top_k: Annotated[int, Meta(ge=1, le=50, description="Most pieces of documents.")] = 4
    min_score: Annotated[
        float, Meta(ge=0, le=1000, description="Pieces that score less are left out.")
    ] = 0.0
    max_documents: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Most documents of a tenant.")
    ] = 10_000
    max_bytes: Annotated[
        int, Meta(ge=1, le=1 << 34, description="Most bytes of all tenants' documents.")
    ] = 256 << 20
    folders: Annotated[
        tuple[Folder, ...], Meta(max_length=16, description="Folders whose files are documents.")
    ] = ()
    folder_every_s: Annotated[
        float, Meta(ge=0.1, le=86_400, description="Time between two looks at the folders.")
    ] = 5.0
    folder_max_files: Annotated[
        int, Meta(ge=1, le=10_000, description="Most files of a folder.")
    ] = 1000
    rerank: Annotated[
        Rerank | None, Meta(description="Put what was found into order by a backend's embeddings.")
    ] = None


class Rag:
    """Puts context into requests and citations into answers."""

    phase: ClassVar[Phase] = Phase.RAG

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._store = env.store
        self._clock = env.clock
        rerank = config.rerank
        self._reranker = (
            Reranker(rerank.backend, rerank.model, rerank.dimensions, env) if rerank else None
        )
        self._limit = max(config.top_k, rerank.candidates) if rerank else config.top_k
        text = "Questions to the documents, by what came of them."
        counter = env.metrics.counter
        self._found, self._none, self._late = (
            counter("tpo_rag_lookups_total", text, result=result)
            for result in ("found", "nothing", "unavailable")
        )

    def meet_targets(self, targets: Mapping[str, Any]) -> None:
        """The backends that may be asked; raises ``ConfigError`` for one without embeddings."""
        rerank = self._config.rerank
        if rerank is None or self._reranker is None:
            return
        target = targets.get(rerank.backend)
        if target is None or Dialect.OPENAI_EMBEDDINGS not in getattr(
            target.backend, "dialects", ()
        ):
            said = f"stages.rag.rerank.backend: {rerank.backend!r} has no embeddings"
            raise ConfigError(said)
        self._reranker.target = target

    async def __call__(self, call: Call, proceed: Proceed, /) -> Reply:
        """Look up, tell, ask."""
        body = SetAside(call.body) if call.dialect in ASKING else None
        asked = None if body is None else _read(body)
        question = question_of(call.dialect, asked)
        chosen = await self._look_up(call, question) if question else []
        changed = _told(call.dialect, body, asked, chosen) if chosen and body else None
        if changed is None:
            return await proceed(call)
        call.body = changed
        call.fingerprint = None
        reply = await proceed(call)
        if reply.status not in _SUCCESS:
            return reply
        reply.headers += b"x-tpo-citations: %d\r\n" % len(chosen)
        return cite(reply, call.dialect, citations_of(chosen))

    async def _look_up(self, call: Call, question: str) -> list[Hit]:
        config = self._config
        now = self._clock()
        until = min(now + config.timeout_s, call.deadline)
        asked = RagQuestion("search", call.tenant, question, limit=self._limit)
        told = await self._store.get(RAG, asked.key(), until - now) if until > now else None
        if told is None:
            self._late.inc()
            return []
        hits = [hit for hit in hits_of(told) if hit.score >= config.min_score]
        if self._reranker is not None:
            hits = await self._reranker.order(call, question, hits, until - self._clock())
        chosen = fitting(hits[: config.top_k], config.max_context_tokens * BYTES_PER_TOKEN)
        (self._found if chosen else self._none).inc()
        return chosen


def _read(body: SetAside) -> Any:
    """What a request asks; ``None`` where it cannot be read."""
    try:
        return body.read()
    except ValueError:
        return None


def _told(dialect: Dialect, body: SetAside, asked: Any, chosen: list[Hit]) -> bytes | None:
    """The body with its context; ``None`` where there is no place for it."""
    try:
        return body.write(asked) if with_context(dialect, asked, context_of(chosen)) else None
    except TypeError:
        return None  # it is nested deeper than can be written


def context_of(hits: list[Hit]) -> str:
    """What the model is told."""
    return "\n\n".join([_LEAD, *(_entry(n, hit) for n, hit in enumerate(hits, 1))])


def fitting(hits: list[Hit], room: int) -> list[Hit]:
    """As many as there is room for, in bytes; the last may be cut at a word."""
    room -= len(_LEAD)
    chosen: list[Hit] = []
    for hit in hits:
        bare = Hit(hit.id, hit.title, hit.piece, hit.score, "", hit.similarity)
        left = room - len(_entry(len(chosen) + 1, bare).encode()) - 2
        text = hit.text.encode()
        if left <= 0:
            break
        if len(text) > left:
            bare.text = text[:left].decode("utf-8", "ignore").rpartition(" ")[0]
            if bare.text:
                chosen.append(bare)
            break
        chosen.append(hit)
        room = left - len(text)
    return chosen


def _entry(number: int, hit: Hit) -> str:
    return f"[{number}] {hit.title or hit.id}\n{hit.text}"


def citations_of(hits: list[Hit]) -> bytes:
    """What the client is told, as JSON."""
    cited: list[dict[str, Any]] = [
        {"number": n, "document_id": h.id, "title": h.title, "piece": h.piece, "score": h.score}
        | ({} if h.similarity is None else {"similarity": h.similarity})
        for n, h in enumerate(hits, 1)
    ]
    return msgspec.json.encode(cited)


FEATURE = Feature(Config, Rag)
