"""Retrieval in a running gateway: the upstream sees what was put in by whichever worker."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.dialects import REPLIES
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, chat
from tests.support.shards import each_shard
from tests.support.toml import NO_CACHE, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
DOCUMENTS = "/api/v1/rag/documents"
KEYS = {name: f"key-of-{name}-0123456789" for name in ("one", "two", "three", "four", "five")}
AUTH = "[auth]\nenabled = true\n" + "".join(
    section("[[auth.keys]]", id=name, secret={"env": f"KEY_{name.upper()}"}) for name in KEYS
)
GOOGLES = """
[surfaces.gemini_api]
[[backends]]
name = "googles"
kind = "simulator"
models = ["gemini-*"]
[simulator]
first_token_ms = 0
token_ms = 0
min_tokens = 5
max_tokens = 9
"""
ENV = {f"KEY_{name.upper()}": key for name, key in KEYS.items()}
TEXT = "The lighthouse of Skagen opens its doors at nine in the morning."


@pytest.fixture(scope="module")
def library(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """Two workers, two tenants, one upstream."""
    with Upstream() as upstream:
        config = (
            backend("up", upstream.base_url, "m") + AUTH
            + section("[stages.rag]", max_context_tokens=200) + GOOGLES
        )  # fmt: skip
        with Gateway(short_tmp / "rag", config=config, workers=2, env=ENV) as gateway:
            yield gateway, upstream


def ask(
    gateway: Gateway,
    who: str,
    method: str,
    path: str,
    body: Any = None,
    through: RawClient | None = None,
) -> RawReply:
    """Ask as a tenant, on a connection of its own or ``through`` one that is there."""
    headers = {"authorization": f"Bearer {KEYS[who]}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    if through is not None:
        return through.request(method, path, headers, data)
    with RawClient(gateway.url) as client:
        return client.request(method, path, headers, data)


def question(gateway: Gateway, who: str, through: RawClient | None = None, **more: Any) -> RawReply:
    """Ask about the lighthouse."""
    body = chat("When does the lighthouse open?", model="m", **more)
    return ask(gateway, who, "POST", CHAT, body, through)


def each_for(gateway: Gateway, who: str) -> AbstractContextManager[tuple[RawClient, RawClient]]:
    """A connection to each worker."""
    head = {"authorization": f"Bearer {KEYS[who]}"}
    return each_shard(gateway.url, model="m", headers=head)


def test_what_a_tenant_put_is_told_to_the_model_and_cited(
    library: tuple[Gateway, Upstream],
) -> None:
    """By both workers, within the cap, to nobody else, and no more once it is taken away."""
    gateway, upstream = library
    sent = {"id": "skagen", "title": "Skagen", "text": f"{TEXT} {'More of it. ' * 400}"}
    assert ask(gateway, "one", "POST", DOCUMENTS, sent).status == 200
    shards = set()
    with each_for(gateway, "one") as clients:
        for client in clients * 3:
            reply = question(gateway, "one", client)
            assert reply.status == 200, reply
            shards.add(reply.headers["x-tpo-shard"])
            (first, *_) = reply.json()["tpo"]["citations"]
            assert (first["document_id"], first["title"], first["number"]) == (
                "skagen",
                "Skagen",
                1,
            )
            assert int(reply.headers["x-tpo-citations"]) == len(reply.json()["tpo"]["citations"])
            seen = json.loads(upstream.seen[-1].body)["messages"]
            assert TEXT in seen[0]["content"]
            assert seen[0]["role"] == "system"
            assert len(seen[0]["content"].encode()) <= 200 * 4
    assert shards == {"0", "1"}
    other = question(gateway, "two")
    assert "tpo" not in other.json()
    assert b"Skagen" not in upstream.seen[-1].body
    for method in ("GET", "DELETE"):
        assert ask(gateway, "two", method, f"{DOCUMENTS}/skagen").status == 404
    assert ask(gateway, "two", "GET", DOCUMENTS).json()["count"] == 0
    listed = ask(gateway, "one", "GET", DOCUMENTS).json()
    assert [d["id"] for d in listed["documents"]] == ["skagen"]
    assert ask(gateway, "one", "DELETE", f"{DOCUMENTS}/skagen").json()["deleted"] is True
    assert "tpo" not in question(gateway, "one").json()
    assert b"Skagen" not in upstream.seen[-1].body


def test_a_picture_beside_the_question_goes_on_as_it_came(
    library: tuple[Gateway, Upstream],
) -> None:
    """Byte for byte, though what was found went into the request."""
    gateway, upstream = library
    sent = {"id": "seen", "title": "Skagen", "text": TEXT}
    assert ask(gateway, "one", "POST", DOCUMENTS, sent).status == 200
    pixels = "data:image/png;base64," + "iVB+/A==" * 130_000
    picture = {"type": "image_url", "image_url": {"url": pixels}}
    asked = {"role": "user", "content": [{"type": "text", "text": ASKED}, picture]}
    reply = ask(gateway, "one", "POST", CHAT, {"model": "m", "messages": [asked]})
    assert reply.json()["tpo"]["citations"][0]["document_id"] == "seen"
    context, last = json.loads(upstream.seen[-1].body)["messages"]
    assert TEXT in context["content"]
    assert last == asked
    assert ask(gateway, "one", "DELETE", f"{DOCUMENTS}/seen").json()["deleted"] is True


GEMINI = "/v1beta/models/gemini-m:generateContent"
ASKED = "When does the lighthouse open?"
SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, chat(ASKED, model="m")),
    "completions": ("/v1/completions", {"model": "m", "prompt": ASKED}),
    "responses": ("/v1/responses", {"model": "m", "input": ASKED}),
    "messages": ("/v1/messages", chat(ASKED, model="m", max_tokens=50)),
    "complete": (
        "/v1/complete",
        {"model": "m", "prompt": f"\n\nHuman: {ASKED}\n\nAssistant:", "max_tokens_to_sample": 50},
    ),
    "gemini": (GEMINI, {"contents": [{"parts": [{"text": ASKED}]}]}),
    "gemini as an array": (GEMINI, {"contents": [{"parts": [{"text": ASKED}]}]}),
}  # fmt: skip


def cited(event: Any) -> Any:
    """The citations of an answer or of an event."""
    return event.get("tpo", event.get("response", {}).get("tpo", {})).get("citations")


@pytest.mark.parametrize("name", SAID)
def test_every_dialect_cites_whole_and_streamed(
    library: tuple[Gateway, Upstream], name: str
) -> None:
    """A stream once: in the last event or beside it."""
    gateway, _ = library
    path, body = SAID[name]
    assert ask(gateway, "three", "POST", DOCUMENTS, {"id": "s", "text": TEXT}).status == 200
    whole = ask(gateway, "three", "POST", path, body)
    assert whole.status == 200, whole.body
    assert cited(whole.json())[0]["document_id"] == "s"
    if name.startswith("gemini"):
        way = "streamGenerateContent" + ("" if "array" in name else "?alt=sse")
        told = ask(gateway, "three", "POST", path.replace("generateContent", way), body)
    else:
        told = ask(gateway, "three", "POST", path, body | {"stream": True})
    text = told.body.decode()
    assert told.status == 200, text
    events: list[Any]
    if "array" in name:
        events = json.loads(text)
    else:
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        assert (lines[-1] == "[DONE]") is (name in ("chat", "completions"))
        events = [json.loads(line) for line in lines if line != "[DONE]"]
    (found,) = [one for one in map(cited, events) if one]
    assert found[0]["document_id"] == "s"
    assert any(map(cited, events[-2:]))
    if name == "responses":
        made = events[-1]["response"]
        kept = ask(gateway, "three", "GET", f"/v1/responses/{made['id']}").json()
        assert cited(kept) == made["tpo"]["citations"]


def test_the_longest_document_and_question_pass(library: tuple[Gateway, Upstream]) -> None:
    """Through every queue on their way to control, whatever their characters take in JSON."""
    gateway, _ = library
    text = f"{TEXT} {chr(1) * (1 << 20)}"[: 1 << 20]
    assert ask(gateway, "five", "POST", DOCUMENTS, {"id": "long", "text": text}).status == 200
    shown = ask(gateway, "five", "GET", f"{DOCUMENTS}/long").json()
    assert shown["text"] == text
    for filler in (chr(1), "\U0001f5fc", "\\"):
        asked = chat(f"{filler * 9000} lighthouse", model="m")
        reply = ask(gateway, "five", "POST", CHAT, asked)
        assert reply.json()["tpo"]["citations"][0]["document_id"] == "long"


def test_documents_outlive_a_worker(library: tuple[Gateway, Upstream]) -> None:
    """They are the host's: who serves next finds them."""
    gateway, _ = library
    assert ask(gateway, "four", "POST", DOCUMENTS, {"id": "kept", "text": TEXT}).status == 200
    old = gateway.worker_pids()
    os.kill(old[0], signal.SIGKILL)
    wait_for(
        lambda: all(
            slot["state"] == "ready" and slot["pid"] != old[0] for slot in gateway.status()["slots"]
        ),
        30, "another worker", every_s=0.1,
    )  # fmt: skip
    shards = set()
    with each_for(gateway, "four") as clients:
        for client in clients * 3:
            reply = question(gateway, "four", client)
            assert reply.json()["tpo"]["citations"][0]["document_id"] == "kept"
            shards.add(reply.headers["x-tpo-shard"])
    assert shards == {"0", "1"}


def test_a_folder_of_documents_is_followed(short_tmp: Path) -> None:
    """By control for all workers, over its death and the host's; for its tenant alone."""
    docs = short_tmp / "docs"
    docs.mkdir()
    hours = docs / "hours.md"
    hours.write_text(f"# Hours\n{TEXT}")
    (docs / "link.md").symlink_to(hours)
    config = (
        '[[backends]]\nname = "echo"\nkind = "echo"\nmodels = ["m"]\n' + AUTH + NO_CACHE
        + section("[stages.rag]", folder_every_s=0.1)
        + section("[[stages.rag.folders]]", name="handbook", path=str(docs), tenant="one")
    )  # fmt: skip
    with Gateway(short_tmp / "folder", config=config, workers=2, env=ENV) as gateway:

        def cites(who: str = "one") -> list[str]:
            reply = question(gateway, who)
            assert reply.status == 200, reply
            return [one["document_id"] for one in reply.json().get("tpo", {}).get("citations", [])]

        path = f"{DOCUMENTS}/handbook/hours.md"
        wait_for(lambda: cites() == ["handbook/hours.md"], 20, "the file's text")
        shards: set[str] = set()

        def by_both() -> bool:
            reply = question(gateway, "one")
            assert b"handbook/hours.md" in (reply.body or b"")
            shards.add(reply.headers["x-tpo-shard"])
            return shards == {"0", "1"}

        wait_for(by_both, 20, "an answer of each worker")
        assert cites("two") == []
        assert ask(gateway, "two", "GET", path).status == 404
        first = ask(gateway, "one", "GET", path).json()
        assert (first["title"], first["text"]) == ("Hours", hours.read_text())
        refused = ask(gateway, "one", "DELETE", path)
        assert refused.status == 400, refused.body
        assert refused.json()["error"]["param"] == "document"

        def left_out() -> float:
            return gateway.metric("tpo_rag_folder_left_out", folder="handbook")

        wait_for(lambda: left_out() == 1, 20, "the link to be told")

        os.kill(gateway.status()["control"]["pid"], signal.SIGKILL)
        (docs / "more.txt").write_text("The lighthouse was built in 1858.")
        wait_for(lambda: set(cites()) == {"handbook/hours.md", "handbook/more.txt"}, 30, "both")
        assert ask(gateway, "one", "GET", path).json() == first, "not read twice"
        gateway.stop()
        (docs / "more.txt").unlink()
        gateway.start()
        wait_for(lambda: cites() == ["handbook/hours.md"], 20, "one to be gone")
        assert ask(gateway, "one", "GET", path).json() == first, "not read twice"


def vectors(*chosen: tuple[float, float]) -> dict[str, Any]:
    """What a server of embeddings answers."""
    data = [{"object": "embedding", "index": n, "embedding": v} for n, v in enumerate(chosen)]
    return {"object": "list", "model": "e", "data": data,
            "usage": {"prompt_tokens": 5, "total_tokens": 5}}  # fmt: skip


def test_what_was_found_is_put_into_order_by_meaning(short_tmp: Path) -> None:
    """By the backend that is named, on every worker; without it in the order of the words."""
    with Upstream() as embedder:
        config = (
            '[[backends]]\nname = "echo"\nkind = "echo"\nmodels = ["m"]\n' + NO_CACHE
            + backend("vectors", embedder.base_url, "e", apis=["embeddings"])
            + "[stages.breaker]\nenabled = false\n[stages.rag]\ntimeout_s = 8\n"
            + 'rerank = { backend = "vectors", model = "e" }\n'
            + "[prices.models]\nm = { input = 1, output = 1 }\ne = { input = 1000, output = 0 }\n"
        )  # fmt: skip
        with Gateway(short_tmp / "rerank", config=config, workers=2) as gateway:
            near, far = "The lighthouse lighthouse.", "A lighthouse, and more words than that."
            for name, text in (("words", near), ("meaning", far)):
                assert gateway.ask(DOCUMENTS, {"id": name, "text": text}).status == 200

            def cited_ids() -> tuple[str, list[str]]:
                reply = gateway.ask(CHAT, chat("lighthouse", model="m"))
                found = reply.json()["tpo"]["citations"]
                return reply.headers["x-tpo-shard"], [one["document_id"] for one in found]

            def counted(result: str) -> float:
                return gateway.metric("tpo_rag_reranks_total", result=result)

            embedder.play(reply=vectors((1, 0), (0, 1), (1, 0)))
            shards: set[str] = set()

            def by_both() -> bool:
                shard, order = cited_ids()
                assert order == ["meaning", "words"]
                shards.add(shard)
                return shards == {"0", "1"}

            wait_for(by_both, 20, "an answer of each worker")
            costs_its_call(gateway)
            sent = embedder.seen[-1].json()
            assert (embedder.seen[-1].path, sent["model"]) == ("/v1/embeddings", "e")
            assert [text.strip() for text in sent["input"]] == ["lighthouse", near, far]
            for result, play in (
                ("unusable", partial(embedder.play, reply=vectors((1, 0), (0, 1)))),
                ("failed", partial(embedder.play, "status", status=500)),
                ("late", partial(embedder.play, "hang")),
            ):
                play()
                assert cited_ids()[1] == ["words", "meaning"]
                wait_for(partial(counted, result), 20, f"{result} to be counted")


def costs_its_call(gateway: Gateway) -> None:
    """The vectors' tokens and dollars are the call's, whichever worker looks up for it."""
    body = json.dumps(chat("lighthouse", model="m")).encode()
    calls: dict[str, str] = {}
    with RawClient(gateway.url) as client:  # one of two sessions lives on the other worker
        for n in range(64):
            head = {"content-type": "application/json", "x-session-id": f"s{n}"}
            reply = client.request("POST", CHAT, head, body)
            calls.setdefault(reply.headers["x-tpo-shard"], reply.headers["x-tpo-call-id"])
            if len(calls) == 2:
                break

    def recorded() -> bool:
        entries = gateway.ask("/api/v1/audit?limit=1000").json()["entries"]
        found = [entry for entry in entries if entry["id"] in calls.values()]
        return [entry["aside_tokens"] for entry in found] == [5, 5] and all(
            entry["cost_usd"] == pytest.approx(
                5e-3 + (entry["prompt_tokens"] + entry["completion_tokens"]) * 1e-6
            )
            for entry in found
        )  # fmt: skip

    wait_for(recorded, 10, "the records of a call on each worker")
    tokens = gateway.metric("tpo_rag_rerank_tokens_total")
    assert tokens == 5 * gateway.metric("tpo_rag_reranks_total")
    assert gateway.metric("tpo_prompt_tokens_total", backend="vectors") == tokens
    spent = gateway.metric("orchestrator_inference_cost_usd_total", worker="vectors", model="e")
    assert spent == pytest.approx(tokens * 1e-3)


def test_without_the_stage_nothing_is_told(short_tmp: Path) -> None:
    """The upstream gets the client's bytes."""
    with Upstream() as upstream:
        upstream.queue("answer", reply=REPLIES["openai_chat"])
        config = backend("up", upstream.base_url, "*")
        with Gateway(short_tmp / "no-rag", config=config) as gateway:
            refused = gateway.ask(DOCUMENTS, {"text": TEXT})
            assert (refused.status, refused.json()["error"]["code"]) == (404, "rag_disabled")
            reply = gateway.ask(CHAT, chat("When does the lighthouse open?", model="m"))
            assert "tpo" not in reply.json()
            sent = json.dumps(chat("When does the lighthouse open?", model="m")).encode()
            assert upstream.seen[-1].body == sent
