"""Calls of dead processes: one letter each, or one rerun each."""

from __future__ import annotations

import json
import signal
import time

import msgspec
import psutil

from tests.integration.control.conftest import StartHost
from tests.integration.control.host import CONTROL, ControlHost, FakeShard, letter_frame
from tests.support.wait import wait_for
from tpo_mp.shm import frames
from tpo_mp.shm.callid import to_bytes
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.plane import Command, HostState
from tpo_mp.shm.registry import SlotFlag
from tpo_mp.store.letters import Letter
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.segments import SegmentLog


def reruns(shard: FakeShard) -> list[frames.RerunFrame]:
    """Reruns that a shard was given, pieces put together."""
    whole: list[frames.RerunFrame] = []
    parts: list[frames.RerunFrame] = []

    def collect() -> bool:
        for raw in shard.received():
            assert HEAD.unpack_from(raw)[0] == Kind.RERUN
            parts.append(msgspec.msgpack.decode(frames.payload(raw), type=frames.RerunFrame))
        return not parts or not parts[-1].more

    wait_for(collect, what="the last piece")
    held: list[frames.RerunFrame] = []
    for part in parts:
        held.append(part)
        if not part.more:
            body = b"".join(p.body for p in held)
            whole.append(frames.RerunFrame(part.call_id, part.attempts, held[0].meta, body))
            held = []
    return whole


def test_a_dead_workers_calls_become_letters_in_time(host: ControlHost) -> None:
    """All of them within 2 s, once each, with their payload and names."""
    shard, other = host.shards
    ids = [shard.open(b'{"n":%d}' % n) for n in range(150)]
    shard.die()
    wait_for(lambda: other.letter_ids() == sorted(ids), 10, "150 letters")
    entry = other.letters(limit=1)[0]
    assert (entry["reason"], entry["session_id"], entry["client_request_id"]) == (
        "worker_lost", "s1", "r1",
    )  # fmt: skip
    wait_for(lambda: not list(host.memory.registry.orphans()), what="slots given back")
    assert other.letter_ids() == sorted(ids)
    assert host.metric("tpo_harvest_letters_total") == 150


def test_a_call_that_was_finished_gets_no_letter(host: ControlHost) -> None:
    """Its record arrived before the worker died; only its slot was still open."""
    shard, other = host.shards
    done = [shard.open() for _ in range(5)]
    open_ids = [shard.open() for _ in range(5)]
    shard.finish(*done)
    wait_for(lambda: host.metric("tpo_control_batches_total") == 1, what="the records")
    shard.die()
    wait_for(lambda: not list(host.memory.registry.orphans()), what="slots given back")
    assert other.letter_ids() == sorted(open_ids)


def test_a_call_that_was_reported_dead_gets_no_second_letter(host: ControlHost) -> None:
    """The worker wrote the letter itself and died before it closed the slot."""
    shard, other = host.shards
    call_id = shard.open()
    shard.send(letter_frame(call_id))
    wait_for(lambda: other.letter_ids() == [call_id], what="the letter")
    shard.die()
    wait_for(lambda: not list(host.memory.registry.orphans()), what="slot given back")
    assert other.letter_ids() == [call_id]
    assert other.letters()[0]["reason"] == "shed"


def test_an_asynchronous_call_is_run_again_once(host: ControlHost) -> None:
    """A ready worker gets it with its id, meta and body; no letter is written."""
    shard, other = host.shards
    large = b'{"prompt":"' + b"x" * 200_000 + b'"}'
    ids = {shard.open(b'{"n":1}', flags=SlotFlag.ASYNC): b'{"n":1}',
           shard.open(large, flags=SlotFlag.ASYNC): large}  # fmt: skip
    shard.die()
    got: list[frames.RerunFrame] = []
    wait_for(lambda: got.extend(reruns(other)) or len(got) == 2, what="two reruns")
    assert {g.call_id: g.body for g in got} == ids
    assert {g.attempts for g in got} == {1}
    meta = msgspec.msgpack.decode(got[0].meta, type=frames.SlotMeta)
    assert (meta.tenant, meta.model) == ("team", "m")
    wait_for(lambda: not list(host.memory.registry.orphans()), what="slots given back")
    other.finish(*ids)
    wait_for(lambda: host.metric("tpo_control_batches_total") == 1, what="the records")
    assert (reruns(other), other.letter_ids()) == ([], [])


def test_a_call_that_was_tried_is_not_run_again(host: ControlHost) -> None:
    """Attempts of one and more end as a letter."""
    shard, other = host.shards
    call_id = shard.open(flags=SlotFlag.ASYNC, attempts=1)
    shard.die()
    wait_for(lambda: other.letter_ids() == [call_id], what="the letter")
    assert reruns(other) == []
    _, found = other.ask("results", call_id)
    result = json.loads(found or b"")
    assert (result["status"], result["error"]["code"]) == ("failed", "worker_lost")


def test_without_a_worker_a_rerun_becomes_a_letter(host: ControlHost) -> None:
    """It waits a moment for a replacement and is then written down, within 2 s."""
    shard, other = host.shards
    call_id = shard.open(flags=SlotFlag.ASYNC)
    other.lines.state = 1
    shard.die()
    wait_for(lambda: other.letter_ids() == [call_id], 10, "the letter")


def test_a_replacement_that_comes_in_time_runs_it(host: ControlHost) -> None:
    """The dead worker's successor may be the one."""
    shard, other = host.shards
    other.lines.state = 1
    call_id = shard.open(flags=SlotFlag.ASYNC)
    shard.die()
    successor = FakeShard(host, 2, 0)
    got: list[frames.RerunFrame] = []
    wait_for(lambda: got.extend(reruns(successor)) or got, what="the rerun")
    assert [g.call_id for g in got] == [call_id]


def test_a_second_worker_that_dies_with_the_call_ends_it_as_a_letter(host: ControlHost) -> None:
    """Whether it had registered the call or not, there is exactly one letter."""
    shard, other = host.shards
    unread = shard.open(flags=SlotFlag.ASYNC)
    registered = shard.open(flags=SlotFlag.ASYNC)
    shard.die()
    got: list[frames.RerunFrame] = []
    wait_for(lambda: got.extend(reruns(other)) or len(got) == 2, what="two reruns")
    taken = next(g for g in got if g.call_id == registered)
    other.registry.open(to_bytes(registered), taken.meta, taken.body, SlotFlag.ASYNC, 1)
    wait_for(lambda: not list(host.memory.registry.orphans()), what="slots given back")
    other.die()
    asker = FakeShard(host, 2, 1)
    wait_for(lambda: asker.letter_ids() == sorted([unread, registered]), what="both letters")
    assert reruns(asker) == []


def test_control_killed_in_the_harvest_writes_each_letter_once(host: ControlHost) -> None:
    """Kill control again and again while it harvests; the letters are complete and single."""
    ids = [host.shards[0].open() for _ in range(120)]
    host.shards[0].die()
    other = host.shards[1]
    for _ in range(3):
        host.kill()
        host.start()
    wait_for(lambda: other.letter_ids() == sorted(ids), what="all letters")
    wait_for(lambda: not list(host.memory.registry.orphans()), what="slots given back")
    assert other.letter_ids() == sorted(ids)


def test_a_worker_that_dies_while_control_is_away_is_harvested(host: ControlHost) -> None:
    """Records that an earlier control wrote still count."""
    shard, other = host.shards
    done, lost = shard.open(), shard.open()
    shard.finish(done)
    assert host.stop() == 0
    host.memory.plane.seat(4).vacate()
    shard.die()
    host.start()
    wait_for(lambda: other.letter_ids() == [lost], what="the letter")
    wait_for(lambda: not list(host.memory.registry.orphans()), what="slots given back")
    assert other.letter_ids() == [lost]


def test_calls_of_an_earlier_run_become_letters(start_host: StartHost) -> None:
    """Every slot left open by a host that died as a whole is in the list of the next run."""
    first = start_host()
    done = first.shards[0].open()
    ids = [shard.open() for shard in first.shards for _ in range(20)]
    opened_by = time.time()
    first.shards[0].finish(done)
    wait_for(lambda: first.metric("tpo_control_batches_total") == 1, what="the records")
    first.stop()
    left = first.state_dir / "registry"
    left.rename(first.state_dir / "registry.previous")
    (first.state_dir / "registry.previous-2").write_bytes(b"not a registry")
    second = start_host()
    shard = second.shards[0]
    wait_for(lambda: shard.letter_ids() == sorted(ids), what="forty letters")
    wait_for(lambda: not list(second.state_dir.glob("registry.previous*")), what="files removed")
    assert shard.letter_ids() == sorted(ids)
    assert all(letter["dropped_at"] <= opened_by for letter in shard.letters())


def test_what_a_drain_leaves_is_written_before_the_end(host: ControlHost) -> None:
    """Workers killed at the drain's deadline: control writes their calls down, then stops."""
    host.memory.plane.host_state = HostState.DRAINING
    ids = [shard.open(flags=SlotFlag.ASYNC) for shard in host.shards for _ in range(20)]
    for shard in host.shards:
        shard.die()
    assert host.stop() == 0
    assert not list(host.memory.registry.orphans())
    log = SegmentLog(host.state_dir / "store/letters", LogLimits(), "no")
    written = [msgspec.msgpack.decode(payload, type=Letter).call_id for _, payload in log.scan()]
    assert sorted(written) == sorted(ids)


def test_what_a_drain_leaves_is_written_though_the_end_was_interrupted(
    start_host: StartHost,
) -> None:
    """Control stood still for longer than counts as a hang, went on, and finished, beating."""
    points = {"TPO_TEST": "1", "TPO_FAILPOINTS": "dlq.half=stop"}
    host = start_host(env=points)
    assert host.process is not None
    control, line = psutil.Process(host.process.pid), host.memory.plane.seat(CONTROL)
    host.memory.plane.host_state = HostState.DRAINING
    ids = [shard.open() for shard in host.shards for _ in range(20)]
    host.signal(signal.SIGSTOP)  # it learns of all this at once
    for shard in host.shards:
        shard.die()
    line.command = Command.STOP
    host.signal(signal.SIGCONT)
    wait_for(lambda: control.status() == psutil.STATUS_STOPPED, what="the interruption")
    beats, began = line.beat, time.monotonic()
    wait_for(lambda: time.monotonic() - began > 1.2, what="longer than is good")

    def ended() -> bool:
        assert host.process is not None
        host.signal(signal.SIGCONT)
        return host.process.poll() is not None

    wait_for(ended, 20, "the end")
    assert host.process.returncode == 0
    assert line.beat > beats
    assert not list(host.memory.registry.orphans())
    log = SegmentLog(host.state_dir / "store/letters", LogLimits(), "no")
    written = [msgspec.msgpack.decode(payload, type=Letter).call_id for _, payload in log.scan()]
    assert sorted(written) == sorted(ids)
