"""The words every room uses: their order, and what a fresh call is."""

from __future__ import annotations

from copy import copy

from tests.support.fake_net import Collected, HeldStream
from tpo_mp.types import NO_DEADLINE, STAGES, Call, Phase, Priority, Reply, Stream, Terminal, Usage


def test_phases_nest_in_order() -> None:
    """Outermost first."""
    assert [phase.name for phase in sorted(Phase)] == [
        "ADMIT", "RAG", "STREAM", "POST_PROCESS", "ASSEMBLE", "INFERENCE", "ATTEMPT",
    ]  # fmt: skip


def test_higher_priority_is_served_first() -> None:
    """Comparable as numbers."""
    assert max(Priority) is Priority.CRITICAL
    assert Priority.NORMAL < Priority.HIGH


def test_stages_and_ends_are_those_operators_know() -> None:
    """Metric labels and records carry these words."""
    assert STAGES == ("rag", "assemble", "inference", "post_process", "stream")
    assert {end.value for end in Terminal} == {
        "done", "failed", "shed", "expired", "cancelled", "crashed",
    }  # fmt: skip


def test_copy_of_a_call_has_all_of_it() -> None:
    """Every field, also one that was added yesterday."""
    call = Call(id="i", model="m", body=b"", stream=False, started_at=1.0)
    for name in Call.__slots__:
        setattr(call, name, object())
    copied = copy(call)
    assert all(getattr(copied, name) is getattr(call, name) for name in Call.__slots__)
    assert copied is not call


def test_fresh_call_asks_for_nothing_special() -> None:
    """Every slot has a value; two calls share none that can change."""
    one, other = (Call(id=i, model="m", body=b"", stream=False, started_at=1.0) for i in ("a", "b"))
    values = {name: getattr(one, name) for name in Call.__slots__}
    assert values["deadline"] == NO_DEADLINE
    assert values["priority"] is Priority.NORMAL
    assert (values["slot"], values["attempts"], values["tried"]) == (-1, 0, None)
    shared = [n for n, v in values.items() if getattr(other, n) is v]
    assert not [n for n in shared if isinstance(values[n], list | dict | set)]


def test_reply_is_a_body_or_a_stream() -> None:
    """With nothing reported until it is."""
    held = HeldStream()
    assert isinstance(held, Stream)
    assert not isinstance(Collected(), Stream)
    reply = Reply(200, None, stream=held)
    assert (reply.stream, reply.body, reply.usage, reply.finish_reason) == (held, None, None, "")
    assert (Usage().prompt, Usage().completion) == (-1, -1)
