"""``tpo-mp simulate load``: requests in a pattern, and assertions on what became of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import click
import orjson
from click.core import ParameterSource

from tpo_mp.errors import ConfigError, ExitCode
from tpo_mp.simulator.load_plan import (
    PATTERNS,
    LoadAssertion,
    LoadOutcome,
    LoadPlan,
    TracePlan,
    table,
)
from tpo_mp.simulator.made_requests import FAMILIES, chat_body, chat_path
from tpo_mp.simulator.traces import TraceRow, prompt_of, rows_of

from .asking import check_target, headers_with
from .load_traffic import Traffic, send_all

_DEFAULT: Final = ParameterSource.DEFAULT
_RATE: Final = click.FloatRange(0.001, 100_000)
_SECONDS: Final = click.FloatRange(0.01, 86_400)


@click.command("load")
@click.option("--url", "-u", default="http://127.0.0.1:8080", show_default=True,
              help="Where requests go.")  # fmt: skip
@click.option("--pattern", "-p", type=click.Choice(PATTERNS), default="constant", show_default=True,
              help="How the rate changes.")  # fmt: skip
@click.option("--rate", "-r", type=_RATE, default=10.0, show_default=True,
              help="Requests per second, at first.")  # fmt: skip
@click.option("--to", type=_RATE, help="Those at a ramp's end, or in a spike [twice the rate].")
@click.option("--for", "for_s", type=_SECONDS, default=10.0, show_default=True, metavar="SECONDS",
              help="How long.")  # fmt: skip
@click.option("--spike-at", "spike_at_s", type=click.FloatRange(0, 86_400), metavar="SECONDS",
              help="When a spike begins [after a third].")  # fmt: skip
@click.option("--spike-for", "spike_for_s", type=_SECONDS, metavar="SECONDS",
              help="How long it is [a third].")  # fmt: skip
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Times and lengths of a public trace (Azure, BurstGPT, Mooncake) instead.",
)
@click.option("--speed", type=click.FloatRange(0.001, 1e6), default=1.0, show_default=True,
              help="So many times as fast as the trace.")  # fmt: skip
@click.option("--dialect", "-d", type=click.Choice(FAMILIES), default="openai",
              show_default=True, help="Whose API is asked.")  # fmt: skip
@click.option("--model", "-m", default="gpt-4o", show_default=True, help="Model that is asked.")
@click.option("--message", default="Tell me about rivers", show_default=True,
              help="What is asked.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1, 100_000), default=64, show_default=True,
              help="Longest answer.")  # fmt: skip
@click.option("--stream", "-s", is_flag=True, help="Ask for streams, and wait for their end.")
@click.option("--key", envvar="TPO_LOAD_KEY", default="unused", help="Credential to send.")
@click.option("--timeout", "timeout_s", type=_SECONDS, default=60.0, show_default=True,
              metavar="SECONDS", help="Longest wait for one answer.")  # fmt: skip
@click.option("--most-open", type=click.IntRange(1, 20_000), default=1000, show_default=True,
              help="Requests open at once; those beyond fail unsent.")  # fmt: skip
@click.option("--assert", "assertions", multiple=True, metavar="MEASURE<BOUND",
              help="latency_p99<2000, error_rate<0.01, throughput>=9; any number.")  # fmt: skip
@click.option("--anywhere", is_flag=True, help="Allow another machine than this one.")
@click.option("--quiet", "-q", is_flag=True, help="Tell no progress.")
def COMMAND(  # noqa: N802 - the name every file of this folder exports
    url: str, pattern: str, rate: float, to: float | None, for_s: float,
    spike_at_s: float | None, spike_for_s: float | None, trace: str | None, speed: float,
    dialect: str, model: str, message: str,
    max_tokens: int, stream: bool, key: str, timeout_s: float, most_open: int,
    assertions: tuple[str, ...], anywhere: bool, quiet: bool,
) -> int:  # fmt: skip
    """Send requests in a pattern; exit code 1 when an assertion fails.

    Each goes out at its time, whatever became of those before it, and its latency counts from then.
    """
    check_target(url, anywhere)
    plan: LoadPlan | TracePlan = LoadPlan(
        pattern=next(one for one in PATTERNS if one == pattern),
        rate=rate,
        to=2 * rate if to is None else to,
        for_s=for_s,
        spike_at_s=for_s / 3 if spike_at_s is None else spike_at_s,
        spike_for_s=for_s / 3 if spike_for_s is None else spike_for_s,
    )
    try:
        wanted = [LoadAssertion.read(text) for text in assertions]
        next(plan.arrivals(), None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    bodies = None
    if trace is not None:
        rows = _rows(Path(trace), speed)
        plan = TracePlan(rows, speed)
        bodies = partial(_traced, rows, dialect, model, stream)
    body = chat_body(dialect, model, message, max_tokens=max_tokens, stream=stream)
    traffic = Traffic(
        url=url.rstrip("/") + chat_path(dialect, model, stream=stream),
        headers=headers_with(key),
        body=orjson.dumps(body),
        timeout_s=timeout_s,
        most_open=most_open,
        bodies=bodies,
    )
    seen = asyncio.run(send_all(plan, traffic, _silent if quiet else _tell))
    click.echo(table(seen, wanted))
    return ExitCode.OK if all(one.holds(seen) for one in wanted) else ExitCode.FAILED


_OF_A_PATTERN: Final = ("pattern", "rate", "to", "spike_at_s", "spike_for_s", "message",
                        "max_tokens")  # fmt: skip


def _rows(path: Path, speed: float) -> list[TraceRow]:
    """The trace's requests, of so many seconds as ``--for`` says if it does."""
    context = click.get_current_context()
    given = [n for n in (*_OF_A_PATTERN, "for_s") if context.get_parameter_source(n) != _DEFAULT]
    wrong = [name for name in given if name in _OF_A_PATTERN]
    if wrong:
        said = wrong[0].removesuffix("_s").replace("_", "-")
        raise click.UsageError(f"--{said} and --trace: a trace says that itself")
    for_s = context.params["for_s"] * speed if "for_s" in given else math.inf
    try:
        return rows_of(path, for_s)
    except ConfigError as error:
        raise click.UsageError(error.message) from None


def _traced(rows: Sequence[TraceRow], dialect: str, model: str, stream: bool, number: int) -> bytes:
    """A body of a row's lengths; ``ignore_eos`` has servers that know it write all of them."""
    row = rows[number]
    words, most = prompt_of(row, number), max(row.answer_tokens, 1)
    body = chat_body(dialect, model, words, max_tokens=most, stream=stream)
    if dialect == "openai":
        body["ignore_eos"] = True
    return orjson.dumps(body)


def _tell(seconds: float, seen: LoadOutcome, waiting: int) -> None:
    failed = sum(seen.failures.values())
    good = len(seen.latencies_s)
    said = f"{seconds:6.1f} s  sent {seen.sent}  answered {good}  failed {failed}  open {waiting}"
    click.echo(said, err=True)


def _silent(_seconds: float, _seen: LoadOutcome, _waiting: int) -> None:
    """Tell nothing."""
