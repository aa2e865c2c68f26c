"""The breaker: what counts, what is refused, who may probe, and that every permit comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tpo_mp.config import load
from tpo_mp.errors import (
    BackendFailure,
    BackendRefused,
    BackendTimeout,
    Cancelled,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    RateLimited,
    Rejected,
    Shed,
    TpoError,
)
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import Alone, BackendConfig
from tpo_mp.stages.breaker import FEATURE, Breaker, Config
from tpo_mp.types import Call, Phase, Reply, Sink

FAULT = BackendFailure("x", reason="upstream_error")
REFUSED = BackendRefused("x", reason="connect_refused")
AUTH = BackendFailure("x", reason="upstream_auth_failed")


class Counted(SilentMetrics):
    """Metrics a test can read, by name and labels."""

    def __init__(self) -> None:
        self.series: dict[str, SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.series.setdefault(":".join((name, *labels.values())), SilentSeries())


class Seat(Alone):
    """A worker among others whose lives a test decides."""

    def __init__(self, here: int, lives: dict[int, int]) -> None:
        self.here = here  # type: ignore[misc]
        self._lives = lives

    def life_of(self, seat: int) -> tuple[int, int]:
        """The seat's epoch."""
        return (self._lives.get(seat, 0), 4000 + seat)


class Guarded:
    """Workers of one host that share a ledger, each with a breaker, in front of one backend."""

    def __init__(self, workers: int = 1, **options: Any) -> None:
        self.world = FakeWorld()
        self.counted = Counted()
        self.lives = dict.fromkeys(range(workers), 1)
        self.asked = 0
        config = msgspec.convert({"probes": 1, **options}, Config)
        self.workers: list[Breaker] = []
        for seat in range(workers):
            env = replace(self.world.env, metrics=self.counted, peers=Seat(seat, self.lives))
            self.workers.append(FEATURE.build(config, env))

    def begin(
        self, worker: int = 0, model: str = "m", backend: str = "b"
    ) -> tuple[Promise[Reply], Promise[Reply]]:
        """Start a try: the backend's promise, and what the caller gets."""
        inner: Promise[Reply] = Promise()
        self.asked += 1

        def proceed(_call: Call) -> Awaitable[Reply]:
            return inner

        try:
            outer = self.workers[worker](call_of(model, backend), proceed)
        except CircuitOpen:
            self.asked -= 1
            raise
        assert isinstance(outer, Promise)
        return inner, outer

    def ask(self, outcome: Exception | Reply | None = None, **where: Any) -> None:
        """A whole try; raises ``CircuitOpen`` when it is refused."""
        inner, outer = self.begin(**where)
        if isinstance(outcome, Exception):
            inner.reject(outcome)
        else:
            inner.resolve(outcome or Reply(200, b"{}"))
        assert outer.done

    def break_it(self, error: Exception = FAULT, times: int = 5, **where: Any) -> None:
        """Fail so often in a row."""
        for _ in range(times):
            self.ask(error, **where)

    def refused(self, worker: int = 0, **where: Any) -> float:
        """Seconds until it is worth asking again; 0: it is not refused."""
        inner: Promise[Reply] = Promise()
        try:
            self.workers[worker](call_of(**where), lambda _call: inner)
        except CircuitOpen as error:
            return error.retry_after_s or -1.0
        inner.cancel()
        return 0.0

    def before_an_update(self, act: Callable[[], object]) -> None:
        """Let others act just before the next update of the ledger."""
        ledger: Any = self.world.env.ledger
        update = ledger.update

        def late(*args: Any, **options: Any) -> Any:
            ledger.update = update
            act()
            return update(*args, **options)

        ledger.update = late

    def count(self, name: str) -> float:
        """A counter."""
        return self.counted.series[name].value


class Trickle:
    """A stream that ends as a test says."""

    def __init__(self) -> None:
        self.sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        """Somebody reads."""
        self.sink = sink

    def pause(self) -> None:
        """Nothing."""

    def resume(self) -> None:
        """Nothing."""

    def cancel(self) -> None:
        """Nobody wants the rest."""


class Deaf:
    """A sink."""

    def data(self, chunk: bytes) -> None:
        """Take bytes."""

    def end(self, error: TpoError | None) -> None:
        """Take the end."""


def call_of(model: str = "m", backend: str = "b") -> Call:
    """A try's call."""
    return make_call(b"{}", model=model, backend=backend)


def test_five_failures_in_a_row_open_it_for_a_minute() -> None:
    """Not four; a success in between begins anew; the refusal says how long and is a 503."""
    guarded = Guarded()
    guarded.break_it(times=4)
    guarded.ask()
    guarded.break_it(times=4)
    assert guarded.refused() == 0
    guarded.break_it(times=1)
    guarded.world.now += 12
    with pytest.raises(CircuitOpen) as refusal:
        guarded.ask()
    error = refusal.value
    assert (error.status, error.reason, error.retry_after_s) == (503, "circuit_open", 48)
    assert "'b' is failing" in error.message
    assert guarded.count("orchestrator_circuit_breaker_requests_rejected_total") == 1
    assert guarded.count("tpo_breaker_failures_total:b:m:backend") == 9


@pytest.mark.parametrize(
    "error",
    [
        Rejected("x", reason="upstream_rejected", status=400),
        RateLimited("x", reason="upstream_rate_limited", retry_after_s=9),
        RateLimited("x", reason="caller_rate_limited"),
        BackendFailure("x", reason="upstream_overloaded", status=503, retry_after_s=9),
        Shed("x", reason="backpressure"),
        DeadlineExceeded("x"),
        Cancelled("x"),
        RuntimeError("a defect of ours"),
    ],
)
def test_what_is_not_the_backends_fault_never_opens_it(error: Exception) -> None:
    """A client's mistakes, full queues and a caller's deadline, as often as they like."""
    guarded = Guarded()
    guarded.break_it(error, times=50)
    assert guarded.refused() == 0
    guarded.break_it(times=4)
    guarded.ask(error)
    guarded.break_it(times=1)
    assert guarded.refused() == 60, "it neither counts nor forgives"


@pytest.mark.parametrize("timeout", ["first_byte_timeout", "idle_timeout", "total_timeout"])
def test_timeouts_of_the_backend_count(timeout: str) -> None:
    """Silence is a failure."""
    guarded = Guarded()
    guarded.break_it(BackendTimeout("x", reason=timeout))
    assert guarded.refused() == 60


def test_a_fault_opens_what_it_is_about() -> None:
    """A model's failures shut that model; an unreachable or refusing backend is shut whole."""
    guarded = Guarded()
    guarded.break_it(model="m")
    assert [guarded.refused(model="m"), guarded.refused(model="n")] == [60, 0]
    assert guarded.refused(backend="c") == 0
    for error in (REFUSED, AUTH):
        guarded = Guarded()
        guarded.break_it(error)
        assert [guarded.refused(model=m) for m in "mno"] == [60, 60, 60]
        assert guarded.refused(backend="c") == 0


def test_each_kind_of_fault_is_counted_apart() -> None:
    """Three of each open nothing; an answer of whatever kind shows that the network is well."""
    guarded = Guarded()
    for _ in range(4):
        guarded.break_it(AUTH, times=1)
        guarded.break_it(FAULT, times=1)
    assert guarded.refused() == 0
    guarded = Guarded()
    guarded.break_it(REFUSED, times=4)
    guarded.ask(Rejected("x", reason="upstream_rejected", status=400))
    guarded.break_it(REFUSED, times=4)
    assert guarded.refused() == 0
    guarded.break_it(REFUSED, times=1)
    assert guarded.refused() == 60


def test_a_stream_that_breaks_is_a_failure_and_one_that_ends_is_not() -> None:
    """Its first byte decides nothing; a client that leaves proves nothing."""
    guarded = Guarded()

    def stream(end: str) -> None:
        origin = Trickle()
        reply = Reply(200, None, stream=origin)
        guarded.ask(reply)
        assert reply.stream is not None
        reply.stream.attach(Deaf())
        if end == "cancel":
            reply.stream.cancel()
        else:
            assert origin.sink is not None
            broken = BackendFailure("x", reason="cut_off") if end == "break" else None
            origin.sink.end(broken)

    for _ in range(4):
        stream("break")
    stream("cancel")
    assert guarded.refused() == 0
    stream("end")
    for _ in range(4):
        stream("break")
    assert guarded.refused() == 0
    stream("break")
    assert guarded.refused() == 60


def test_all_workers_see_it_open_and_one_of_them_probes() -> None:
    """Whoever comes first after the wait; the others are told to come back in a second."""
    guarded = Guarded(workers=3)
    for worker in (0, 1, 2, 0, 1):
        guarded.ask(FAULT, worker=worker)
    assert [guarded.refused(worker=w) for w in range(3)] == [60, 60, 60]
    guarded.world.now += 60
    asked = guarded.asked
    inner, _ = guarded.begin(worker=1)
    assert [guarded.refused(worker=w) for w in range(3)] == [1, 1, 1]
    assert guarded.asked == asked + 1
    inner.resolve(Reply(200, b"{}"))
    assert [guarded.refused(worker=w) for w in range(3)] == [0, 0, 0]
    states = "orchestrator_circuit_breaker_state_transitions_total"
    assert [guarded.count(f"{states}:{s}") for s in ("open", "half_open", "closed")] == [1, 1, 1]


def test_the_log_has_a_line_for_each_change_of_state() -> None:
    """By whom it was made, and no line for anything else."""
    guarded = Guarded(workers=2)
    with capture_logs() as lines:
        guarded.break_it()
        for worker in (0, 1):
            assert guarded.refused(worker=worker) == 60
        guarded.world.now += 60
        guarded.ask(worker=1)
    assert [line["event"] for line in lines] == [
        "breaker_opened", "breaker_probed", "breaker_closed",
    ]  # fmt: skip
    assert {(line["breaker"], line["fault"]) for line in lines} == {("b:m", "backend")}
    assert lines[0]["failures"] == 5


def test_a_failed_probe_waits_twice_as_long() -> None:
    """A1, through the stage."""
    guarded = Guarded()
    guarded.break_it()
    for wait in (60, 120, 240):
        assert guarded.refused() == wait
        guarded.world.now += wait
        guarded.ask(FAULT)
    guarded.world.now += 480
    guarded.ask()
    assert guarded.refused() == 0


def test_several_probes_close_it_one_at_a_time() -> None:
    """With the shipped options one success is not enough."""
    guarded = Guarded(probes=Config().probes)
    guarded.break_it()
    guarded.world.now += 60
    first, _ = guarded.begin()
    assert guarded.refused() == 1
    first.resolve(Reply(200, b"{}"))
    second, _ = guarded.begin()
    assert guarded.refused() == 1
    second.resolve(Reply(200, b"{}"))
    assert guarded.refused() == 0
    assert guarded.begin() != guarded.begin()


@pytest.mark.parametrize("way", ["cancelled", "client_fault", "raised", "capacity"])
def test_a_permit_comes_back_whatever_becomes_of_its_call(way: str) -> None:
    """Without a proof the next one may try at once, and nothing is counted."""
    guarded = Guarded(workers=2)
    guarded.break_it()
    guarded.world.now += 60
    if way == "raised":
        with pytest.raises(Shed):
            guarded.workers[0](call_of(), raises)
    else:
        inner, outer = guarded.begin()
        assert guarded.refused(worker=1) == 1
        if way == "cancelled":
            outer.cancel()
        elif way == "capacity":
            inner.reject(Shed("x", reason="backpressure"))
        else:
            inner.reject(Rejected("x", reason="upstream_rejected", status=400))
    guarded.ask(FAULT, worker=1)
    assert guarded.refused() == 120, "that was the first failed probe"


def raises(_call: Call) -> Awaitable[Reply]:
    """A backend with no room."""
    raise Shed("x", reason="backpressure")


def test_a_dead_workers_permit_is_free_and_a_late_one_lapses() -> None:
    """The next probe counts; what the first one says afterwards does not."""
    guarded = Guarded(workers=2, permit_s=30)
    guarded.break_it()
    guarded.world.now += 60
    late, _ = guarded.begin(worker=0)
    guarded.lives[0] = 2
    probe, _ = guarded.begin(worker=1)
    late.reject(FAULT)
    assert guarded.refused() == 1, "the second probe is still under way"
    guarded.world.now += 30
    third, _ = guarded.begin(worker=1)
    probe.resolve(Reply(200, b"{}"))
    assert guarded.refused() == 1
    third.resolve(Reply(200, b"{}"))
    assert guarded.refused() == 0


def test_calls_that_began_before_it_opened_change_nothing() -> None:
    """Their failures do not put the probe off, their success does not close it."""
    guarded = Guarded()
    calls = [guarded.begin()[0] for _ in range(20)]
    for inner in calls[:5]:
        inner.reject(FAULT)
    guarded.world.now += 30
    for inner in calls[5:15]:
        inner.reject(FAULT)
    for inner in calls[15:]:
        inner.resolve(Reply(200, b"{}"))
    assert guarded.refused() == 30


def test_what_another_worker_did_between_look_and_lock_holds() -> None:
    """It opened the circuit: our failure does not open it anew.  It took the permit: we do not."""
    guarded = Guarded(workers=2)
    guarded.break_it(times=4)
    ours, _ = guarded.begin(worker=0)
    theirs, _ = guarded.begin(worker=1)

    def fails_first() -> None:
        guarded.world.now += 10
        theirs.reject(FAULT)

    guarded.before_an_update(fails_first)
    ours.reject(FAULT)
    assert guarded.refused() == 60
    guarded.world.now += 60
    guarded.before_an_update(lambda: guarded.begin(worker=1))
    with pytest.raises(CircuitOpen) as refusal:
        guarded.begin(worker=0)
    assert refusal.value.retry_after_s == 1


def test_two_circuits_of_a_target_are_probed_by_one_call() -> None:
    """A backend that was unreachable and whose key was refused comes back at once."""
    guarded = Guarded()
    guarded.break_it(REFUSED, times=5)
    guarded.world.now += 60
    guarded.ask(AUTH)  # reachable again: the network's circuit is closed
    for _ in range(4):
        guarded.ask(AUTH)
    assert guarded.refused() == 60
    guarded.world.now += 60
    guarded.ask()
    assert guarded.refused() == 0


def test_a_backend_that_asks_for_a_pause_is_left_out_by_routes_only() -> None:
    """For as long as it said, for that model; whoever has no other backend asks it still."""
    guarded = Guarded(workers=2)
    guarded.ask(RateLimited("x", reason="upstream_rate_limited", retry_after_s=20))
    other = guarded.workers[1]
    assert other.blocked(call_of(), "b")
    assert not other.blocked(call_of("n"), "b")
    guarded.ask(worker=1)
    guarded.world.now += 19
    assert other.blocked(call_of(), "b")
    guarded.ask(RateLimited("x", reason="upstream_rate_limited", retry_after_s=1e6), worker=1)
    guarded.world.now += 299
    assert other.blocked(call_of(), "b")
    guarded.world.now += 1
    assert not other.blocked(call_of(), "b")


def test_routes_can_ask_without_taking_anything() -> None:
    """Open: yes; due for a probe: no, until somebody probes."""
    guarded = Guarded(workers=2)
    one, other = guarded.workers
    assert not one.blocked(call_of(), "b")
    guarded.break_it()
    assert one.blocked(call_of(), "b")
    assert other.blocked(call_of(), "b")
    guarded.world.now += 60
    assert not any(w.blocked(call_of(), "b") for w in (one, other, one))
    guarded.begin()
    assert one.blocked(call_of(), "b")
    assert other.blocked(call_of(), "b")


def test_while_all_is_well_nothing_is_written() -> None:
    """A call without a fault does not touch the ledger, whole or as a stream."""
    guarded = Guarded()
    guarded.ask()
    ledger: Any = guarded.world.env.ledger
    before = dict(ledger.names)
    ledger.update = None  # nobody may
    for _ in range(3):
        guarded.ask()
        guarded.ask(Rejected("x", reason="upstream_rejected", status=400))
    assert dict(ledger.names) == before


def test_a_ledger_that_is_held_up_costs_no_call_its_answer() -> None:
    """An outcome that cannot be written is lost; a permit that cannot be had is refused."""
    guarded = Guarded()
    guarded.break_it(times=4)
    ledger: Any = guarded.world.env.ledger
    update = ledger.update

    def held(*_: object, **__: object) -> None:
        raise Shed("x", reason="ledger_busy")

    ledger.update = held
    guarded.ask(FAULT)
    assert guarded.count("tpo_breaker_lost_total") == 1
    ledger.update = update
    guarded.ask(FAULT)
    guarded.world.now += 60
    ledger.update = held
    assert guarded.refused() == 1


def test_backends_that_wait_in_tasks_count_alike() -> None:
    """A coroutine's task, its error and its cancellation."""
    guarded = Guarded()

    async def fails() -> Reply:
        await asyncio.sleep(0)
        raise FAULT

    async def wait_for_task(task: asyncio.Future[Reply]) -> Reply:
        return await guarded.workers[0](call_of(), lambda _call: task)

    async def main() -> None:
        for _ in range(5):
            with pytest.raises(BackendFailure):
                await wait_for_task(asyncio.ensure_future(fails()))
        assert guarded.refused() == 60
        guarded.world.now += 60
        task: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(wait_for_task(task))
        await asyncio.sleep(0)
        assert guarded.refused() == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert task.cancelled()
        await asyncio.sleep(0)

    asyncio.run(main())
    guarded.ask(FAULT)
    assert guarded.refused() == 120


def test_models_of_the_config_have_places_that_clients_cannot_take() -> None:
    """Literal names are the operator's; under a glob they are the crowd's."""
    guarded = Guarded()
    breaker = guarded.workers[0]
    entry = BackendConfig(name="b", kind="echo", models=("m", "g-*"), model_map={"n": "up"})
    breaker.meet([entry])
    crowd = {m: breaker._known.places("b", m)[2].crowd for m in ("m", "n", "g-1", "x")}
    assert crowd == {"m": False, "n": False, "g-1": True, "x": True}
    assert breaker.phase is Phase.ATTEMPT


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": 0}, "stages.breaker.threshold = 0: "),
        ({"open_s": 0}, "stages.breaker.open_s = 0: "),
        ({"success_rate": 1.5}, "stages.breaker.success_rate = 1.5: "),
        ({"probes": 21}, "stages.breaker.probes = 21: "),
        ({"treshold": 5}, "stages.breaker.treshold: unknown key; did you mean 'threshold'?"),
    ],
)
def test_a_wrong_option_is_told_with_its_path(options: dict[str, Any], said: str) -> None:
    """As every setting is."""
    with pytest.raises(ConfigError) as refused:
        load.build({"stages": {"breaker": options}}, {}, {}, None)
    assert said in refused.value.message


def test_it_is_on_unless_it_is_switched_off() -> None:
    """Without a word in the config, with the documented numbers; other spellings are the same."""
    shipped = load.build({}, {}, {}, None)
    assert "breaker" in shipped.stage_order
    found = shipped.stages["breaker"]
    assert isinstance(found, Config)
    assert (found.threshold, found.open_s, found.success_rate) == (5, 60, 0.8)
    other = {
        "circuit_breaker_threshold": 3,
        "circuit_breaker_timeout_s": 120,
        "circuit_breaker_success_rate": 0.5,
    }
    loaded = load.build({"resilience": other}, {}, {}, None).stages["breaker"]
    assert loaded == Config(threshold=3, open_s=120, success_rate=0.5)
    off = load.build({"stages": {"breaker": {"enabled": False}}}, {}, {}, None)
    assert "breaker" not in off.stage_order
