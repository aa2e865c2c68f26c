"""What a benchmark makes of answers: when words came, how many tokens, which quantiles."""

from __future__ import annotations

import orjson
import pytest

from tpo_mp.pipeline.codecs import codec
from tpo_mp.simulator import measured
from tpo_mp.simulator.answers import Speech
from tpo_mp.simulator.made_requests import DIALECTS, FAMILIES, ApiFamily, chat_body
from tpo_mp.simulator.measured import AnswerWatch, BenchmarkOutcome, Measured
from tpo_mp.simulator.provider import Answered, SimulatedProvider


def answered(family: ApiFamily) -> Answered:
    """An answer of eight tokens in a family's shape."""
    dialect = DIALECTS[family]
    body = chat_body(family, "gpt-4", "hello", max_tokens=8, stream=True)
    body |= {"model": "anything"}
    provider = SimulatedProvider(Speech())
    steps = provider.generate(codec(dialect), dialect, orjson.dumps(body), "")
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: Answered = done.value
            return found


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_s_events_are_told_apart_however_they_are_cut(family: ApiFamily) -> None:
    """The first that brings words begins the answer; heads, pings and ends are no words."""
    watch, now = AnswerWatch(stream=True), 100.0
    for event, _ in answered(family).frames(True, None):
        for at in range(0, len(event), 7):  # no read ends where an event does
            watch.feed(event[at : at + 7], now)
        now += 1.0 if event else 0.0
    before = {"openai": 1, "anthropic": 3, "google": 0}[family]
    assert watch.first_at == 100.0 + before
    assert watch.gaps == [1.0] * 7
    assert watch.tokens == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_answer_s_tokens_are_counted(family: ApiFamily) -> None:
    """And it has no first token of its own."""
    watch = AnswerWatch(stream=False)
    whole = answered(family).body()
    watch.feed(whole[:50], 1.0)
    watch.feed(whole[50:], 2.0)
    watch.end()
    assert (watch.tokens, watch.first_at, watch.gaps) == (8, 0.0, [])


@pytest.mark.parametrize(
    "data",
    [
        b"data: {",
        b"data: []",
        b"data: 7",
        b'data: {"usage": 3}',
        b'data: {"choices": [{"delta": 4}]}',
        b"\xff\xfe",
        b"data:",
    ],
)
def test_what_is_no_answer_is_none(data: bytes) -> None:
    """Any bytes may come from a server."""
    watch = AnswerWatch(stream=True)
    watch.feed(data + b"\n\n", 1.0)
    whole = AnswerWatch(stream=False)
    whole.feed(data, 1.0)
    whole.end()
    assert (watch.first_at, watch.tokens, whole.tokens) == (0.0, 0, 0)


def test_quantiles_are_nearest_ranks() -> None:
    """Of a thousand whole milliseconds, in any order."""
    kept = Measured()
    for number in range(1000, 0, -1):
        kept.add(number / 1e3)
    assert kept.milliseconds() == {
        "mean": 500.5, "p50": 500.0, "p90": 900.0, "p95": 950.0, "p99": 990.0, "max": 1000.0
    }  # fmt: skip
    assert Measured().milliseconds() == {}


def test_beyond_what_is_kept_a_sample_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly drawn; mean and longest stay exact."""
    monkeypatch.setattr(measured, "MOST_KEPT", 2000)
    kept = Measured()
    for number in range(20_000):
        kept.add(number / 1e3)
    found = kept.milliseconds()
    assert (found["mean"], found["max"]) == (9999.5, 19_999.0)
    assert found["p50"] == pytest.approx(10_000, rel=0.1)
    assert found["p90"] == pytest.approx(18_000, rel=0.05)


def test_rates_count_good_answers_only() -> None:
    """Over the whole time."""
    seen, watch = BenchmarkOutcome(), AnswerWatch(stream=False)
    watch.tokens = 10
    for number in range(4):
        seen.sent += 1
        if number:
            seen.answered(0.0, 0.5, watch)
        else:
            seen.failed("503")
    seen.took_s = 2.0
    told = seen.report()
    assert (told["succeeded"], told["failed"], told["error_rate"]) == (3, 1, 0.25)
    assert (told["requests_per_s"], told["tokens_per_s"]) == (1.5, 15.0)
    assert (told["errors"], told["ttft_ms"]) == ({"503": 1}, {})
