"""``tpo-mp simulate benchmark``: how fast a server answers so many clients at once."""

from __future__ import annotations

import asyncio
import csv
import io
import sys
from collections.abc import Iterator
from typing import Any, Final

import click
import orjson

from tpo_mp.errors import ExitCode
from tpo_mp.simulator.made_requests import FAMILIES, chat_body, chat_path
from tpo_mp.simulator.measured import BenchmarkOutcome

from .asking import check_target, headers_with
from .benchmark_traffic import ClosedLoop, run_benchmark
from .forms import json_of
from .load_traffic import Traffic

MOST_REQUESTS: Final = 1_000_000
MOST_SECONDS: Final = 86_400.0


@click.command("benchmark")
@click.option("--url", "-u", default="http://127.0.0.1:8080", show_default=True,
              help="Where requests go.")  # fmt: skip
@click.option("--requests", "-r", "most", type=click.IntRange(1, MOST_REQUESTS),
              help="How many [1000, or as many as fit into --duration].")  # fmt: skip
@click.option("--concurrency", "-c", type=click.IntRange(1, 10_000), default=10,
              show_default=True, help="Clients; each waits for its answer.")  # fmt: skip
@click.option("--duration", "-d", "for_s", type=click.FloatRange(0.01, MOST_SECONDS),
              metavar="SECONDS", help="Begin no request later than this.")  # fmt: skip
@click.option("--type", "-t", "kind", type=click.Choice(["chat", "embedding"]), default="chat",
              show_default=True, help="What is asked for.")  # fmt: skip
@click.option("--dialect", type=click.Choice(FAMILIES), default="openai", show_default=True,
              help="Whose API is asked; embeddings are OpenAI's.")  # fmt: skip
@click.option("--model", "-m", help="Model that is asked [gpt-4, text-embedding-ada-002].")
@click.option("--message", default="Tell me about rivers", show_default=True,
              help="What is asked, or embedded.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1, 100_000), default=64, show_default=True,
              help="Longest answer.")  # fmt: skip
@click.option("--stream", "-s", is_flag=True, help="Ask for streams; TTFT and ITL are measured.")
@click.option("--warmup", type=click.IntRange(0, 10_000), default=10, show_default=True,
              help="Requests before those that count.")  # fmt: skip
@click.option("--format", "-f", "form", type=click.Choice(["text", "json", "csv"]),
              default="text", show_default=True, help="How the result is printed.")  # fmt: skip
@click.option("--key", envvar="TPO_LOAD_KEY", default="unused", help="Credential to send.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.01, MOST_SECONDS), default=60.0,
              metavar="SECONDS", help="Longest wait for one answer [60].")  # fmt: skip
@click.option("--anywhere", is_flag=True, help="Allow another machine than this one.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def COMMAND(  # noqa: N802 - the name every file of this folder exports
    url: str, most: int | None, concurrency: int, for_s: float | None, kind: str, dialect: str,
    model: str | None, message: str, max_tokens: int, stream: bool, warmup: int, form: str,
    key: str, timeout_s: float, anywhere: bool, quiet: bool,
) -> int:  # fmt: skip
    """Measure latency, first token, tokens' gaps, rates and errors; exit code 1 when all failed.

    Each client asks again once it is answered, so a slow server is asked less; for requests that
    come in their own time see `simulate load`.
    """
    check_target(url, anywhere)
    if kind == "embedding" and (stream or dialect != "openai"):
        raise click.UsageError("embeddings are not streamed, and asked for in OpenAI's API only")
    if most is None:
        most = 1000 if for_s is None else MOST_REQUESTS
    if kind == "chat":
        model = model or "gpt-4"
        path = chat_path(dialect, model, stream=stream)
        body = chat_body(dialect, model, message, max_tokens=max_tokens, stream=stream)
        if stream and dialect == "openai":
            body["stream_options"] = {"include_usage": True}
    else:
        model = model or "text-embedding-ada-002"
        path, body = "/v1/embeddings", {"model": model, "input": message}
    traffic = Traffic(
        url=url.rstrip("/") + path,
        headers=headers_with(key),
        body=orjson.dumps(body),
        timeout_s=timeout_s,
        most_open=concurrency,
    )
    loop = ClosedLoop(
        most=most,
        at_once=concurrency,
        for_s=MOST_SECONDS if for_s is None else for_s,
        warmup=warmup,
        stream=stream,
    )
    shown = not quiet and sys.stderr.isatty()
    seen = asyncio.run(run_benchmark(loop, traffic, _show if shown else _silent))
    if shown:
        click.echo(err=True)
    asked = {"url": traffic.url, "model": model, "stream": stream, "concurrency": concurrency}
    click.echo(_WAYS[form](asked | seen.report()))
    return ExitCode.OK if seen.good else ExitCode.FAILED


def _show(seconds: float, seen: BenchmarkOutcome) -> None:
    failed = sum(seen.failures.values())
    rate = seen.good / seconds if seconds else 0.0
    said = f"{seconds:6.1f} s  answered {seen.good}  failed {failed}  {rate:.1f}/s"
    click.echo(f"\r{said:<70}", nl=False, err=True)


def _silent(_seconds: float, _seen: BenchmarkOutcome) -> None:
    """Show nothing."""


def _text(report: dict[str, Any]) -> str:
    rows = list(_cells(report))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _csv(report: dict[str, Any]) -> str:
    """A head and one line; measures without any number are empty, errors share a cell."""
    row: dict[str, Any] = {}
    for name, value in report.items():
        if name == "errors":
            row[name] = ";".join(f"{why}:{count}" for why, count in value.items())
        elif name.endswith("_ms"):
            for part in ("mean", "p50", "p90", "p95", "p99", "max"):
                row[f"{name.removesuffix('_ms')}_{part}_ms"] = value.get(part, "")
        else:
            row[name] = value
    told = io.StringIO()
    written = csv.writer(told, lineterminator="\n")
    written.writerow(row)
    written.writerow(row.values())
    return told.getvalue().rstrip("\n")


def _cells(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in report.items():
        if name == "errors":
            yield from ((f"failed: {why}", str(count)) for why, count in value.items())
        elif name.endswith("_ms"):
            for part, number in value.items():
                yield f"{name.removesuffix('_ms')}_{part}", f"{_short(number)} ms"
        elif isinstance(value, float):
            yield name, _short(value)
        else:
            yield name, str(value)


def _short(number: float) -> str:
    return f"{number:.3f}".rstrip("0").rstrip(".")


_WAYS: Final = {"text": _text, "json": json_of, "csv": _csv}
