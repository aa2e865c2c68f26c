"""A session stays on its shard; sessions spread over all of them."""

from __future__ import annotations

from tests.support.gateway import Gateway
from tests.support.raw import RawClient, chat
from tests.support.shards import session_on

CHAT = "/v1/chat/completions"


def shard_of(client: RawClient, headers: dict[str, str], **body: str) -> str:
    """Ask once and answer the shard that served the call."""
    reply = client.post_json(CHAT, chat("hi", **body), headers)
    assert reply.status == 200, reply
    return reply.headers["x-tpo-shard"]


def test_a_session_is_served_by_one_shard_over_any_connection(echo_gateway: Gateway) -> None:
    """Eight sessions, eight connections each: every session sees exactly one shard."""
    seen: dict[str, set[str]] = {}
    for _ in range(8):
        with RawClient(echo_gateway.url) as client:
            for session in range(8):
                name = f"session-{session}"
                seen.setdefault(name, set()).add(shard_of(client, {"X-Session-Id": name}))
    assert all(len(shards) == 1 for shards in seen.values()), seen


def test_sessions_reach_every_shard(echo_gateway: Gateway) -> None:
    """Sixty-four sessions over one connection reach both shards, so the mesh is used."""
    with RawClient(echo_gateway.url) as client:
        shards = {shard_of(client, {"X-Session-Id": f"s{i}"}) for i in range(64)}
    assert shards == {str(i) for i in range(echo_gateway.workers)}


def test_body_keys_choose_the_shard_when_no_header_does(echo_gateway: Gateway) -> None:
    """``prompt_cache_key`` and ``user`` pin a call as a session header would."""
    for key in ("prompt_cache_key", "user"):
        for value in ("a", "ключ", "with space"):
            seen = set()
            for _ in range(6):
                with RawClient(echo_gateway.url) as client:
                    seen.add(shard_of(client, {}, **{key: value}))
            assert len(seen) == 1, (key, value, seen)


def test_the_header_outranks_the_body(echo_gateway: Gateway) -> None:
    """With both, ``X-Session-Id`` alone decides."""
    with RawClient(echo_gateway.url) as client:
        home = shard_of(client, {"X-Session-Id": "pinned"})
        seen = {shard_of(client, {"X-Session-Id": "pinned"}, user=f"u{i}") for i in range(16)}
    assert seen == {home}


def test_calls_without_a_key_stay_on_the_shard_that_took_them(echo_gateway: Gateway) -> None:
    """No key, no hop: one connection sees one shard."""
    with RawClient(echo_gateway.url) as client:
        assert len({shard_of(client, {}) for _ in range(12)}) == 1


def test_streams_cross_the_mesh_whole(echo_gateway: Gateway) -> None:
    """A long stream is the same from both shards, byte for byte but its id."""
    words = " ".join(f"w{i}" for i in range(400))
    texts: dict[str, set[int]] = {}
    url = echo_gateway.url
    with RawClient(url) as client:
        for session in (session_on(url, i % 2, f"stream-{i}") for i in range(12)):
            body = chat(words, stream=True)
            reply = client.post_json(CHAT, body, {"X-Session-Id": session})
            assert reply.events[-1] == b"[DONE]"
            texts.setdefault(reply.headers["x-tpo-shard"], set()).add(len(reply.events))
    assert len(texts) == echo_gateway.workers
    assert len(set.union(*texts.values())) == 1


def test_large_bodies_cross_the_mesh_whole(echo_gateway: Gateway) -> None:
    """A body too large for a ring travels by reference and arrives complete."""
    text = " ".join(f"word{i}" for i in range(20_000))
    seen = set()
    url = echo_gateway.url
    with RawClient(url) as client:
        for session in (session_on(url, i % 2, f"large-{i}") for i in range(8)):
            reply = client.post_json(CHAT, chat(text), {"X-Session-Id": session})
            assert reply.json()["choices"][0]["message"]["content"] == text
            seen.add(reply.headers["x-tpo-shard"])
    assert len(seen) == echo_gateway.workers
