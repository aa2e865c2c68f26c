"""The figures of an overload, and the load that makes one."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from benchmarks import overload as of
from benchmarks.openloop import BROKEN, OpenLoop, Shot, arrivals
from benchmarks.scenarios.overload import KINDS, judged, requests, step_row


def good(due_s: float, took_ms: float = 50.0, *, queued_ms: float = 0.0, kind: str = "a") -> Shot:
    """An answer."""
    return Shot(due_s, kind, 200, took_ms, queued_ms=queued_ms)


def refused(due_s: float, took_ms: float = 1.0, *, pause_ms: float = 0.0) -> Shot:
    """One that was told to come later."""
    return Shot(due_s, "a", 503, took_ms, pause_ms=pause_ms)


def test_goodput_counts_answers_only_and_failures_are_neither_refused_nor_late():
    """200, 503, 504, 500 and nothing at all."""
    shots = [good(0), refused(0), Shot(0, "a", 504), Shot(0, "a", 500), Shot(0, "a", BROKEN)]
    assert of.good_per_s(shots, 2.0) == 0.5
    assert of.failed(shots) == 2


def test_percentiles_are_of_the_answered_and_of_the_refused():
    """One slow in a hundred is the 99th."""
    shots = [good(0, 1.0) for _ in range(99)] + [good(0, 500.0), refused(0, 9000.0)]
    assert of.p99_good_ms(shots) == 500.0
    assert of.p99_refused_ms(shots) == 9000.0
    assert of.percentile([], 0.99) == 0.0


def test_recovery_ends_with_the_last_bad_window():
    """A refusal, or a slow answer, and from when on there was none."""
    calm = [good(n / 20) for n in range(100)]
    assert of.recovery_s(calm, 50.0, 5.0) == 0.0
    assert of.recovery_s([*calm, refused(1.1)], 50.0, 5.0) == 1.25
    assert of.recovery_s([*calm, good(2.3, 80.0)], 50.0, 5.0) == 2.5
    assert of.recovery_s([*calm, refused(4.9)], 50.0, 5.0) == of.NEVER


def test_a_pause_is_held_against_the_waits_of_that_time():
    """Twice too long and half of it are both off by two."""
    shots = [good(n / 10, queued_ms=100.0) for n in range(10)]
    for told, off in ((100.0, 1.0), (200.0, 2.0), (50.0, 2.0)):
        more = [refused(n / 10, pause_ms=told) for n in range(10)]
        assert of.told_off_by(shots + more) == pytest.approx(off)
    assert of.told_off_by(shots) == 0.0


def test_a_fair_share_is_what_was_asked_or_half():
    """Nine of ten small calls; half of the capacity for one that wants all."""
    few = [good(0, kind="b") for _ in range(9)] + [Shot(0, "b", 503)]
    assert of.share_of_fair(few, "b", capacity=100, secs=1) == 0.9
    many = [good(0, kind="b") for _ in range(50)] + [Shot(0, "b", 503) for _ in range(200)]
    assert of.share_of_fair(many, "b", capacity=100, secs=1) == 1.0


def test_a_wait_is_held_against_those_overdue_before_it():
    """Overdue after a second, ten places a second, two at once: 1.6 s, 2 s behind another."""
    alone = [good(0, queued_ms=1600, kind="low")]
    assert of.wait_of_bound(alone, "low", 1.0, 10, 2) == pytest.approx(1.0)
    two = [good(0, queued_ms=1600, kind="low"), good(0.1, queued_ms=2000, kind="low")]
    assert of.wait_of_bound(two, "low", 1.0, 10, 2) == pytest.approx(1.0)
    assert of.wait_of_bound([*two, Shot(0.2, "low", 503)], "low", 1.0, 10, 2) == of.NEVER


def test_arrivals_are_as_many_as_asked_and_in_order():
    """A thousand a second for two seconds, a tenth of another kind."""
    plan = arrivals(1000, 2.0, Random(3), {"a": 0.9, "b": 0.1}, start_s=5)
    assert 1800 < len(plan) < 2200
    assert plan == sorted(plan)
    assert 5 < plan[0][0] < plan[-1][0] < 7
    assert 120 < sum(kind == "b" for _, kind in plan) < 280


def test_a_step_without_answers_is_a_row_too():
    """Nothing came back."""
    row = step_row([Shot(0, "plain", 503)], 1.0, 100.0, 2.0)
    assert (row["share"], row["refused"], row["failed"]) == (0, 1, 0)


def test_every_kind_has_requests_of_its_own_key_and_header():
    """And no two are the same."""
    made = requests("http://127.0.0.1:1")
    for kind, (key, headers) in KINDS.items():
        one, other = made[kind](), made[kind]()
        assert one != other
        assert b"Authorization: Bearer %b\r\n" % key.encode() in one
        for name, value in headers.items():
            assert f"{name}: {value}\r\n".encode() in one


def test_figures_that_were_not_measured_are_not_met():
    """The table says so, of all of this scenario."""
    table = judged({})
    assert table.count("not measured") == 9
    assert "0 of 9 are met" in table


def test_the_load_does_not_wait_for_answers():
    """Ten requests to a server that answers none before it has all: a closed loop would hang."""

    async def main() -> list[Shot]:
        waiting: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            waiting.append(writer)
            if len(waiting) < 10:
                return
            for number, held in enumerate(waiting):
                status = b"503 Busy" if number == 0 else b"200 OK"
                held.write(
                    b"HTTP/1.1 %b\r\nRetry-After-Ms: 70\r\nX-TPO-Queue-Ms: 1.5\r\n"
                    b"Content-Length: 2\r\n\r\nok" % status
                )

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = OpenLoop(f"http://127.0.0.1:{port}", {"a": lambda: b"GET / HTTP/1.1\r\n\r\n"})
        shots = await client.fire([(n / 100, "a") for n in range(10)], patience_s=10)
        client.close()
        for writer in waiting:
            writer.close()
        server.close()
        await server.wait_closed()
        return shots

    shots = asyncio.run(main())
    assert sorted(shot.status for shot in shots) == [200] * 9 + [503]
    assert all(shot.pause_ms == 70 and shot.queued_ms == 1.5 for shot in shots)
    first, last = min(shots, key=lambda s: s.due_s), max(shots, key=lambda s: s.due_s)
    assert first.took_ms > last.took_ms, "latencies count from when a request was due"
