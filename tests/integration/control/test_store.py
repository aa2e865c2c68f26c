"""Records, values and dead letters through real rings into real files."""

from __future__ import annotations

import json

import msgspec

from tests.integration.control.conftest import StartHost
from tests.integration.control.host import ControlHost, letter_frame
from tests.support.wait import wait_for
from tpo_mp.shm.frames import HEAD, Kind, RecordFrame
from tpo_mp.store.questions import LETTERS
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.segments import SegmentLog


def records_on_disk(host: ControlHost) -> list[str]:
    """Call ids in the call-record log, oldest first."""
    log = SegmentLog(host.state_dir / "store/calls", LogLimits(), "no")
    batches = [msgspec.msgpack.decode(p, type=list[RecordFrame]) for _, p in log.scan()]
    return [record.call_id for batch in batches for record in batch]


def test_call_records_of_all_seats_reach_the_log(host: ControlHost) -> None:
    """Thousands of batches arrive in order, once each."""
    sent = []
    for _ in range(300):
        for shard in host.shards:
            ids = [shard.ids.new() for _ in range(8)]
            shard.finish(*ids)
            sent += ids
    assert host.stop() == 0
    assert sorted(records_on_disk(host)) == sorted(sent)


def test_a_value_is_kept_and_answered(host: ControlHost) -> None:
    """Absent, present, replaced, forgotten; small and larger than a ring record."""
    shard = host.shards[0]
    assert shard.ask("results", "k") == (True, None)
    assert shard.put("results", "k", b"v")
    assert shard.ask("results", "k") == (True, b"v")
    large = bytes(range(256)) * 4096
    assert shard.put("results", "large", large)
    assert host.shards[1].ask("results", "large") == (True, large)
    assert shard.put("results", "k", b"", ttl_s=0.0)
    assert shard.ask("results", "k") == (True, None)


def test_values_survive_a_kill(host: ControlHost) -> None:
    """An acknowledged value is there after kill -9 of control."""
    assert host.shards[0].put("results", "k", b"v", ttl_s=600.0)
    host.kill()
    host.start()
    assert host.shards[0].ask("results", "k") == (True, b"v")


def test_letters_are_listed_in_pages_and_read_one_by_one(host: ControlHost) -> None:
    """The answers have the shape of the dead-letter routes."""
    shard = host.shards[0]
    ids = [shard.ids.new() for _ in range(12)]
    for n, call_id in enumerate(ids):
        body = json.dumps({"n": n}).encode()
        shard.send(letter_frame(call_id, body, tenant="ab"[n % 2]))
    wait_for(lambda: len(shard.letters()) == 12, what="twelve letters")
    first = shard.letters()[0]
    assert first == {
        "request_id": ids[-1], "client_request_id": "r1", "session_id": "s1", "reason": "shed",
        "dropped_at": 12.5, "tenant": "b",
    }  # fmt: skip
    _, raw = shard.ask(LETTERS, '{"limit":5}')
    page = json.loads(raw or b"")
    assert (page["count"], page["total"]) == (5, 12)
    rest = shard.letters(limit=100, after=int(page["next"]))
    assert [e["request_id"] for e in page["entries"] + rest] == ids[::-1]
    assert len(shard.letters(tenant="a")) == 6
    _, raw = shard.ask(LETTERS, ids[3])
    one = json.loads(raw or b"")
    assert (one["payload"], one["status"], one["tenant"]) == ({"n": 3}, "open", "b")
    assert shard.ask(LETTERS, shard.ids.new()) == (True, None)
    wait_for(lambda: host.metric("tpo_dead_letters") == 12, what="the gauge")


def test_a_replayed_letter_leaves_the_list(host: ControlHost) -> None:
    """Its status is remembered, also after a restart."""
    shard = host.shards[0]
    ids = [shard.ids.new() for _ in range(2)]
    for call_id in ids:
        shard.send(letter_frame(call_id))
    wait_for(lambda: len(shard.letters()) == 2, what="two letters")
    assert shard.put(LETTERS, ids[0], b"replayed")
    assert not shard.put(LETTERS, shard.ids.new(), b"replayed")
    assert not shard.put(LETTERS, ids[1], b"nonsense")
    assert shard.letter_ids() == [ids[1]]
    host.kill()
    host.start()
    assert shard.letter_ids() == [ids[1]]


def test_a_letter_longer_than_a_record_is_put_together(host: ControlHost) -> None:
    """Pieces of one call id become one body, and the answer comes back whole."""
    shard = host.shards[0]
    call_id = shard.ids.new()
    body = json.dumps({"prompt": "x" * 300_000}).encode()
    step = shard.max_record - 512
    for at in range(0, len(body), step):
        shard.send(letter_frame(call_id, body[at : at + step], more=at + step < len(body), at=at))
    wait_for(lambda: shard.letter_ids() == [call_id], what="the letter")
    _, raw = shard.ask(LETTERS, call_id)
    assert json.loads(raw or b"")["payload"] == json.loads(body)


def test_the_rest_of_a_letter_or_value_is_not_taken_for_it(host: ControlHost) -> None:
    """Whoever sent a value hears that it was not kept; a letter says that it is not all."""
    shard = host.shards[0]
    lost, whole = shard.ids.new(), shard.ids.new()
    shard.send(letter_frame(lost, b"rest}", at=9))
    shard.send(letter_frame(whole))
    wait_for(lambda: len(shard.letter_ids()) == 2, what="both letters")
    told, other = (json.loads(shard.ask(LETTERS, call_id)[1] or b"") for call_id in (lost, whole))
    assert (told["truncated"], told["payload"], told["reason"]) == (True, "", "shed")
    assert not other["truncated"]
    assert not shard.put("notes", "k", b"not all of it", begin=4)
    assert shard.ask("notes", "k") == (True, None)
    assert shard.put("notes", "k", b"all of it")


def test_a_long_list_is_answered_in_pieces(host: ControlHost) -> None:
    """A thousand letters are more than a ring holds at once."""
    shard = host.shards[0]
    for _ in range(1100):
        shard.send(letter_frame(shard.ids.new()))
    wait_for(lambda: host.metric("tpo_dead_letters") == 1100, 30.0, "all letters")
    assert len(shard.letters()) == 1000


def test_nonsense_on_a_ring_is_counted_and_survived(host: ControlHost) -> None:
    """Truncated, unknown and malformed records do no harm."""
    shard = host.shards[0]
    junk = [b"\x00", HEAD.pack(250, 0), HEAD.pack(Kind.DEAD_LETTER, 0)]
    junk += [HEAD.pack(Kind.STORE_GET, 0) + b"\xc1", HEAD.pack(Kind.STORE_PUT, 0) + b"\x93\x01"]
    for piece in junk:
        shard.send(piece)
    shard.send(HEAD.pack(Kind.RECORDS, 0) + b"\xc1\xc1")
    assert shard.put("t", "k", b"v")
    wait_for(lambda: host.metric("tpo_control_malformed_total") == 5, what="the counter")


def test_a_disk_that_refuses_degrades_and_loses_nothing(start_host: StartHost) -> None:
    """Short writes: the letter is visible from memory, readiness says so, errors are counted."""
    host = start_host(env={"TPO_TEST": "1", "TPO_FAILPOINTS": "dlq.half=drop"})
    shard = host.shards[0]
    call_id = shard.ids.new()
    shard.send(letter_frame(call_id))
    wait_for(lambda: shard.letter_ids() == [call_id], what="the letter")
    wait_for(lambda: host.metric("tpo_dlq_write_errors_total") > 0, what="the error counter")
    status, body, _ = host.get("/ready")
    assert (status, json.loads(body)["degraded"]) == (200, ["store-letters"])


def test_a_kill_in_the_middle_of_a_write_leaves_a_clean_log(start_host: StartHost) -> None:
    """Torn by kill -9 half-way through a write: the next control cuts the tail and goes on."""
    host = start_host(env={"TPO_TEST": "1", "TPO_FAILPOINTS": "dlq.half=kill9:1:24"})
    shard = host.shards[0]
    sent = []
    process = host.process
    assert process is not None
    while process.poll() is None:
        call_id = shard.ids.new()
        if shard.offer(letter_frame(call_id)):
            sent.append(call_id)
    host.env = {}
    host.kill()
    host.start()
    kept = shard.letter_ids()
    assert len(kept) == len(set(kept))
    assert set(kept) <= set(sent)
    more = shard.ids.new()
    shard.send(letter_frame(more))
    # All that the dead one had been sent comes first.
    wait_for(lambda: more in shard.letter_ids(), 60, "a letter after the restart", every_s=0.2)
