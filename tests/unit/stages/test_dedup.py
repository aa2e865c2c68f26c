"""Which calls share an upstream call, and what each of them is told."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import BackendFailure, DeadlineExceeded
from tpo_mp.pipeline.chain import fold
from tpo_mp.pipeline.promise import Promise
from tpo_mp.stages.dedup import FEATURE, Config
from tpo_mp.types import Call, Priority, Reply, Usage


class Upstream:
    """What lies deeper: calls wait until the test answers them."""

    def __init__(self, **options: Any) -> None:
        self.world = FakeWorld()
        self.asked: list[Call] = []
        self.promises: list[Promise[Reply]] = []
        self.given_up = 0
        self.serve = fold(
            [FEATURE.build(msgspec.convert(options, Config), self.world.env)], self._infer
        )

    def _infer(self, call: Call) -> Awaitable[Reply]:
        call.attempts += 1
        call.backend = "up"
        self.asked.append(call)
        self.promises.append(Promise(self._cancel))
        return self.promises[-1]

    def _cancel(self) -> None:
        self.given_up += 1

    def ask(self, call: Call) -> Promise[Reply]:
        """A call arrives."""
        out = self.serve(call)
        assert isinstance(out, Promise)
        return out


def sure(text: str = "hi", **more: Any) -> Call:
    """A call that is certain to get the same answer."""
    fields = {k: more.pop(k) for k in ("temperature", "seed") if k in more} or {"temperature": 0}
    messages = [{"role": "user", "content": text}]
    body = {"model": "m", "messages": messages} | fields
    return make_call(json.dumps(body).encode(), model="m", **more)


def whole() -> Reply:
    """An answer that used tokens."""
    reply = Reply(200, b'{"a":1}', backend="up")
    reply.usage = Usage(3, 4)
    return reply


def test_those_who_ask_the_same_get_one_answer() -> None:
    """The first pays; the others say that they were coalesced, and count no attempt."""
    up = Upstream()
    calls = [sure() for _ in range(3)]
    outs = [up.ask(call) for call in calls]
    assert len(up.asked) == 1
    up.promises[0].resolve(whole())
    assert [out.value.body for out in outs if out.value] == [b'{"a":1}'] * 3
    assert [call.cache for call in calls] == ["", "coalesced", "coalesced"]
    assert [call.attempts for call in calls] == [1, 0, 0]
    assert [call.backend for call in calls] == ["up"] * 3
    up.ask(sure())
    assert len(up.asked) == 2, "it joined an answer that had been given"


@pytest.mark.parametrize(
    "other",
    [
        sure("another"), sure(tenant="t"), sure(authorization=b"Bearer b"), sure(stream=True),
        sure(priority=Priority.HIGH), sure(usage_wanted=True), sure(temperature=0.5),
        sure(reuse=2), sure(reuse=1), sure(seed=3), sure(forward=b"x-up: 1\r\n"),
    ],
)  # fmt: skip
def test_who_asks_otherwise_asks_by_itself(other: Call) -> None:
    """Another text, tenant, credential, form, priority, setting; and who wants no earlier one."""
    up = Upstream()
    up.ask(sure())
    up.ask(other)
    assert len(up.asked) == 2


def test_uncertain_answers_are_shared_only_where_it_is_said() -> None:
    """``match = "all"``."""
    for options, asked in (({}, 2), ({"match": "all"}, 1), ({"enabled": False}, 2)):
        up = Upstream(**options)
        for _ in range(2):
            up.ask(sure(temperature=1))
        assert len(up.asked) == asked


def test_a_call_beyond_the_cap_asks_by_itself() -> None:
    """The index is bounded."""
    up = Upstream(max_entries=1)
    for text in "aabb":
        up.ask(sure(text))
    assert len(up.asked) == 3


def test_who_leaves_leaves_alone_and_the_last_ends_it() -> None:
    """Even the one that began it; the next in line pays."""
    up = Upstream()
    calls = [sure() for _ in range(3)]
    first, second, third = (up.ask(call) for call in calls)
    first.cancel()
    assert up.given_up == 0
    third.cancel()
    up.promises[0].resolve(whole())
    assert second.value is not None
    assert [call.attempts for call in calls] == [0, 1, 0]
    last = up.ask(sure())
    last.cancel()
    assert up.given_up == 1
    up.ask(sure())
    assert len(up.asked) == 3, "it joined what was given up"


def test_an_error_is_everybodys() -> None:
    """And nobody joins it afterwards."""
    up = Upstream()
    outs = [up.ask(sure()) for _ in range(2)]
    up.promises[0].reject(BackendFailure("broke"))
    assert all(isinstance(out.error, BackendFailure) for out in outs)
    up.ask(sure())
    assert len(up.asked) == 2


def test_the_first_ones_lack_of_time_is_its_own() -> None:
    """Who has more time goes on with a new upstream call."""
    up = Upstream()
    hasty, patient = sure(deadline=1001.0), sure(deadline=2000.0)
    short, long = up.ask(hasty), up.ask(patient)
    up.promises[0].reject(DeadlineExceeded("too late"))
    assert isinstance(short.error, DeadlineExceeded)
    assert not long.done
    assert (len(up.asked), up.asked[1].deadline) == (2, 2000.0)
    up.promises[1].resolve(whole())
    assert long.value is not None
    assert patient.attempts == 1


def test_another_try_of_an_sdk_joins_the_first_and_nothing_else_does() -> None:
    """Whatever the sampling, where it is switched on; first tries share nothing."""
    up = Upstream(sdk_retries=True)
    first, again = sure(temperature=1, sdk_try=0), sure(temperature=1, sdk_try=1)
    outs = [up.ask(first), up.ask(again)]
    up.ask(sure(temperature=1, sdk_try=1, key_id="another"))
    assert len(up.asked) == 2
    up.promises[0].resolve(whole())
    assert [out.value is not None for out in outs] == [True, True]
    assert (first.attempts, again.attempts) == (1, 0)
    for _ in range(2):
        up.ask(sure(temperature=1, sdk_try=0))
    up.ask(sure(temperature=1, sdk_try=1))
    assert len(up.asked) == 5, "nobody can tell which of two it belongs to"
    off = Upstream()
    for number in range(2):
        off.ask(sure(temperature=1, sdk_try=number))
    assert len(off.asked) == 2


def test_a_whole_answer_waits_for_the_sdk_that_asks_again() -> None:
    """It came while nobody was there."""
    up = Upstream()
    first, again = sure(patience_s=5.0), sure()
    out = up.ask(first)
    up.world.advance(5)
    out.cancel()
    assert up.given_up == 0
    up.promises[0].resolve(whole())
    got = up.ask(again)
    assert got.value is not None
    assert (len(up.asked), first.attempts, again.attempts) == (1, 0, 1)
