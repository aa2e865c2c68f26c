"""Power is lost: the registry in memory is gone, and its copy on disk tells what was open.

A second host in the same folder replaces the registry file, as a boot after a loss of power would
find none on a tmpfs.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.integration.control.conftest import StartHost
from tests.integration.control.host import ControlHost, FakeShard, letter_frame
from tests.support.wait import wait_for, wait_still
from tpo_mp.shm.callid import to_bytes
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.plane import HostState
from tpo_mp.shm.registry_layout import copy_name
from tpo_mp.store.open_copy import OpenCopyReader
from tpo_mp.store.questions import LETTERS

ALWAYS = '[store]\ndurability = "always"\n'


def copies(host: ControlHost) -> list[Path]:
    """The copies that lie there."""
    return sorted(host.state_dir.glob(copy_name()))


def copied(host: ControlHost) -> set[bytes]:
    """Ids of the calls that are on disk."""
    found: set[bytes] = set()
    for path in copies(host):
        found |= {call.call_id for call in OpenCopyReader(path).calls()}
    return found


def state(path: Path) -> tuple[int, int, int]:
    """What a write would change."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def is_copied(host: ControlHost, *ids: str) -> None:
    """Wait until exactly these calls are on disk."""
    wait_for(lambda: copied(host) == set(map(to_bytes, ids)), what=f"{len(ids)} calls on disk")


def settled(host: ControlHost, shard: FakeShard, *ids: str) -> None:
    """Wait for exactly these letters, and for every trace of the earlier run to go."""
    wait_for(lambda: shard.letter_ids() == sorted(ids), what=f"{len(ids)} letters")
    wait_for(lambda: not copies(host), what="the copy removed")
    wait_for(lambda: not list(host.state_dir.glob("registry.previous*")), what="all removed")
    assert shard.letter_ids() == sorted(ids)


def test_open_calls_become_letters_once(start_host: StartHost) -> None:
    """With payload and names, however large; not again at the boot after."""
    first = start_host()
    large = b'{"prompt":"' + b"x" * 300_000 + b'"}'
    ids = [shard.open() for shard in first.shards for _ in range(20)]
    ids.append(first.shards[0].open(large))
    opened_by = time.time()
    is_copied(first, *ids)
    first.kill()
    over_by = time.time()
    second = start_host()
    shard = second.shards[0]
    settled(second, shard, *ids)
    entry = next(e for e in shard.letters() if e["request_id"] == ids[0])
    assert (entry["reason"], entry["session_id"], entry["client_request_id"]) == (
        "worker_lost", "s1", "r1",
    )  # fmt: skip
    assert opened_by - 1 <= entry["dropped_at"] <= over_by
    _, letter = shard.ask(LETTERS, ids[0])
    assert letter is not None
    assert json.loads(letter)["bytes_sent"] is None, "a copy does not know"
    second.kill()
    third = start_host()
    settled(third, third.shards[0], *ids)


def test_calls_that_ended_after_the_copy_get_no_letter(start_host: StartHost) -> None:
    """Their records and letters are on disk, although the copy still has them."""
    first = start_host()
    shard = first.shards[0]
    done = [shard.open() for _ in range(3)]
    shed, lost = shard.open(), shard.open()
    is_copied(first, *done, shed, lost)
    shard.finish(*done)
    shard.send(letter_frame(shed))
    wait_for(lambda: first.metric("tpo_control_batches_total") == 1, what="the records")
    wait_for(lambda: shard.letter_ids() == [shed], what="the letter")
    assert first.stop() == 0
    assert copied(first) == {to_bytes(i) for i in (*done, shed, lost)}
    second = start_host()
    settled(second, second.shards[0], shed, lost)
    reasons = {e["request_id"]: e["reason"] for e in second.shards[0].letters()}
    assert reasons == {shed: "shed", lost: "worker_lost"}


def test_where_the_registry_survived_its_copy_is_not_believed(start_host: StartHost) -> None:
    """Only the processes died: calls that ended after the copy without a record are no letters."""
    first = start_host()
    shard = first.shards[0]
    ended, lost = shard.open(), shard.open()
    is_copied(first, ended, lost)
    first.kill()
    shard.registry.close(0)
    later = shard.open()
    (first.state_dir / "registry").rename(first.state_dir / "registry.previous")
    second = start_host()
    settled(second, second.shards[0], lost, later)


def test_a_torn_copy_costs_only_its_end(start_host: StartHost) -> None:
    """And one that is not a copy at all costs nothing else."""
    first = start_host()
    ids = [first.shards[0].open() for _ in range(5)]
    is_copied(first, *ids)
    first.kill()
    (path,) = copies(first)
    os.truncate(path, path.stat().st_size - 3)
    path.with_name("registry.synced-" + "0" * 16).write_bytes(b"not a copy")
    second = start_host()
    settled(second, second.shards[0], *ids[:-1])


def test_a_call_of_a_dead_worker_is_copied_until_its_letter_is(host: ControlHost) -> None:
    """An orphan is still open; with its letter it is gone from the copy."""
    shard, other = host.shards
    call_id = shard.open()
    is_copied(host, call_id)
    shard.die()
    wait_for(lambda: other.letter_ids() == [call_id], what="the letter")
    is_copied(host)


def test_a_second_control_process_goes_on_with_the_copy(host: ControlHost) -> None:
    """Killed at any time, it leaves a file that its successor replaces."""
    ids = [host.shards[0].open()]
    is_copied(host, *ids)
    host.kill()
    assert copied(host) == {to_bytes(ids[0])}
    ids.append(host.shards[1].open())
    host.start()
    is_copied(host, *ids)
    assert len(copies(host)) == 1


def test_an_idle_host_writes_nothing(host: ControlHost) -> None:
    """Neither before the first call nor while calls stay open."""
    assert copies(host) == []
    call_id = host.shards[0].open()
    is_copied(host, call_id)
    (path,) = copies(host)
    before = state(path)
    assert wait_still(lambda: state(path), 2.5) == before


def test_a_clean_end_leaves_no_copy(host: ControlHost) -> None:
    """What a drain leaves open became letters before."""
    ids = [host.shards[0].open() for _ in range(3)]
    is_copied(host, *ids)
    host.memory.plane.host_state = HostState.DRAINING
    for shard in host.shards:
        shard.die()
    assert host.stop() == 0
    assert copies(host) == []


def test_no_durability_no_copy(host: ControlHost) -> None:
    """And one that is there goes at a reload; a loss of power then loses the calls."""
    is_copied(host, host.shards[0].open())
    host.publish('[store]\ndurability = "no"\n')
    is_copied(host)
    wait_for(lambda: copies(host) == [], what="the copy removed")


def test_always_answers_once_the_call_is_on_disk(host: ControlHost) -> None:
    """When SYNCED arrives the file has the call."""
    epoch = host.publish(ALWAYS)
    wait_for(lambda: host.memory.plane.seat(4).config_ack == epoch, what="the configuration")
    shard = host.shards[1]
    for number in range(1, 20):
        call_id = shard.open()
        slot = number - 1
        shard.send(HEAD.pack(Kind.SYNC, number) + slot.to_bytes(4, "little"))
        got: list[bytes] = []
        wait_for(lambda: got.extend(shard.received()) or got, what="the answer")  # noqa: B023
        assert [HEAD.unpack(record) for record in got] == [(Kind.SYNCED, number)]
        assert to_bytes(call_id) in copied(host)


@pytest.mark.parametrize("record", [b"\0", b"\xff" * 4 + b"\0", b""])
def test_a_malformed_question_is_survived(host: ControlHost, record: bytes) -> None:
    """Slots that are not there, half a slot, none."""
    epoch = host.publish(ALWAYS)
    wait_for(lambda: host.memory.plane.seat(4).config_ack == epoch, what="the configuration")
    shard = host.shards[0]
    shard.send(HEAD.pack(Kind.SYNC, 5) + record)
    got: list[bytes] = []
    wait_for(lambda: got.extend(shard.received()) or got, what="the answer")
    assert HEAD.unpack(got[0]) == (Kind.SYNCED, 5)
