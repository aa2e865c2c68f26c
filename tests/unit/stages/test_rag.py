"""Looking things up on the way of a call: what the model is told, and how much of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import ConfigError
from tpo_mp.pipeline.promise import Promise
from tpo_mp.stages.rag import BYTES_PER_TOKEN, Config, Rag, context_of, fitting
from tpo_mp.store.rag_questions import Hit, question
from tpo_mp.types import Call, Dialect, Reply

HITS = [Hit("d1", "Hours", 0, 3.5, "We open at nine."), Hit("d2", "", 2, 1.0, "We close at five.")]


class Library:
    """A stage over a store that answers what a test says, and a backend that keeps what it saw."""

    def __init__(self, hits: list[Hit] | None, **options: Any) -> None:
        self.hits = hits
        self.asked: list[tuple[str, Any, float]] = []
        self.seen: list[bytes] = []
        self.status = 200
        env = replace(FakeWorld().env, store=self)
        self.stage = Rag(msgspec.convert(options, Config), env)

    async def get(self, table: str, key: str, wait_s: float = 0.05) -> bytes | None:
        """Answer, or not."""
        self.asked.append((table, question(key), wait_s))
        return None if self.hits is None else msgspec.json.encode(self.hits)

    def core(self, call: Call) -> Awaitable[Reply]:
        """The backend."""
        self.seen.append(call.body)
        out: Promise[Reply] = Promise()
        out.resolve(Reply(self.status, b'{"choices":[]}'))
        return out

    def send(self, **more: Any) -> Reply:
        """Ask something."""
        body = json.dumps({"messages": [{"role": "user", "content": "when do you open?"}]})
        call = make_call(more.pop("body", body.encode()), tenant="t", fingerprint=1, **more)

        async def story() -> Reply:
            return await self.stage(call, self.core)

        return asyncio.run(story())


def test_what_is_found_is_told_and_cited() -> None:
    """To the model by number, to the client by document."""
    library = Library(HITS, timeout_s=3, top_k=7)
    reply = library.send()
    ((table, asked, wait_s),) = library.asked
    assert (table, asked.tenant, asked.text, asked.limit, wait_s) == (
        "rag", "t", "when do you open?", 7, 3,
    )  # fmt: skip
    told = json.loads(library.seen[0])["messages"][0]
    assert told["role"] == "system"
    assert "[1] Hours\nWe open at nine.\n\n[2] d2\nWe close at five." in told["content"]
    assert json.loads(reply.body or b"")["tpo"]["citations"] == [
        {"number": 1, "document_id": "d1", "title": "Hours", "piece": 0, "score": 3.5},
        {"number": 2, "document_id": "d2", "title": "", "piece": 2, "score": 1.0},
    ]
    assert reply.headers == b"x-tpo-citations: 2\r\n"


def test_without_anything_to_tell_a_request_is_untouched() -> None:
    """Nothing found, nothing that scores, no answer in time, no question, no place."""
    for library, body in (
        (Library([]), None),
        (Library(HITS, min_score=9), None),
        (Library(None), None),
        (Library(HITS), b'{"messages": [ ]}'),
    ):
        reply = library.send(**({} if body is None else {"body": body}))
        assert b"excerpts" not in library.seen[0]
        assert body is None or library.seen == [body]
        assert (reply.body, reply.headers) == (b'{"choices":[]}', b"")
    vectors = Library(HITS)
    vectors.send(dialect=Dialect.OPENAI_EMBEDDINGS, body=b'{"input": "a"}')
    assert vectors.asked == []


class Embedder:
    """A backend with vectors for a question and two texts, of which the second is nearer."""

    def __init__(self, *dialects: Dialect) -> None:
        self.backend = self
        self.dialects = dialects
        self.asked = 0

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Answer."""
        self.asked += 1
        out: Promise[Reply] = Promise()
        vectors = enumerate([[1, 0], [0, 1], [1, 1]])
        data = [{"index": n, "embedding": vector} for n, vector in vectors]
        out.resolve(Reply(200, json.dumps({"data": data}).encode()))
        return out


def test_what_is_nearest_is_told_first_where_a_backend_says_so() -> None:
    """More is looked up than is told, what scores too little is not put into order at all."""
    rerank = {"backend": "e", "model": "m", "candidates": 9}
    library = Library(HITS, top_k=1, rerank=rerank)
    embedder = Embedder(Dialect.OPENAI_EMBEDDINGS)
    library.stage.meet_targets({"e": embedder})
    reply = library.send()
    assert library.asked[0][1].limit == 9
    assert json.loads(reply.body or b"")["tpo"]["citations"] == [
        {"number": 1, "document_id": "d2", "title": "", "piece": 2, "score": 1.0,
         "similarity": 0.7071},
    ]  # fmt: skip
    assert b"We close" in library.seen[0]
    assert b"We open" not in library.seen[0]
    few = Library(HITS, min_score=2, rerank=rerank)
    few.stage.meet_targets({"e": embedder})
    assert few.send().headers == b"x-tpo-citations: 1\r\n"
    assert embedder.asked == 1


def test_a_backend_without_embeddings_is_refused() -> None:
    """And one that is not there; without the option nobody is looked for."""
    library = Library(HITS, rerank={"backend": "e", "model": "m"})
    for targets in ({}, {"e": Embedder(Dialect.OPENAI_CHAT)}):
        with pytest.raises(ConfigError, match="'e' has no embeddings"):
            library.stage.meet_targets(targets)
    Library(HITS).stage.meet_targets({})


def test_a_body_that_cannot_be_written_again_goes_on_as_it_came() -> None:
    """Nested deeper than is written, or read: no failure of the call."""
    said = b'{"messages":[{"role":"user","content":"when do you open?"}],"metadata":%b}'
    for depth in (300, 5_000):
        library = Library(HITS)
        body = said % (b"[" * depth + b"]" * depth)
        reply = library.send(body=body)
        assert (library.seen, reply.headers) == ([body], b"")


def test_a_deadline_bounds_the_wait_for_documents() -> None:
    """And a call without time is not looked anything up for."""
    library = Library(HITS, timeout_s=3)
    now = FakeWorld().env.clock()
    library.send(deadline=now + 1)
    library.send(deadline=now)
    assert [wait_s for _, _, wait_s in library.asked] == [1]


def test_a_failure_cites_nothing() -> None:
    """Its body is the backend's."""
    library = Library(HITS)
    library.status = 400
    assert library.send().body == b'{"choices":[]}'


def test_context_stays_within_its_cap() -> None:
    """In bytes of the whole text that is put in, whatever the pieces; the last is cut at a word."""
    words = " ".join(f"wörd{i}" for i in range(160))
    hits = [Hit(f"d{i}", "Title " * (i % 3), i, 5.0 - i, words) for i in range(5)]
    for tokens in range(16, 2600, 37):
        chosen = fitting(hits, tokens * BYTES_PER_TOKEN)
        size = len(context_of(chosen).encode())
        assert not chosen or size <= tokens * BYTES_PER_TOKEN
        assert chosen == [] or all(hit.text for hit in chosen)
        if tokens > 500:
            assert size > tokens * BYTES_PER_TOKEN - 2 * len(words) or len(chosen) == 5
        if chosen and chosen[-1].text != words:
            assert words.startswith(chosen[-1].text + " ")
    assert len(fitting(hits, 1 << 20)) == 5
