"""``tpo-mp replay``: ask again what was dropped, from lines or from the gateway's own list.

A line is a whole native request (``{"prompt": …}``), which is sent to ``/api/v1/infer``, or a
dropped record (``{"request_id": …}``), whose request the gateway has kept and asks again itself.
A record the gateway knows no letter of, or without its name, is skipped: there is nothing to ask.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

import click
import orjson

from tpo_mp.errors import ExitCode

from .asking import Told, ask

CELLS: Final = 40
MOST_PAUSE_S: Final = 60.0
FIRST_PAUSE_S: Final = 0.1
_OF_A_RECORD: Final = frozenset({"reason", "dropped_at"})
_AGAIN: Final = (408, 409, 425, 429, 500, 502, 503, 504, 529)


@dataclass(slots=True)
class Tally:
    """What became of the lines so far."""

    total: int
    ok: int = 0
    fail: int = 0
    skip: int = 0

    @property
    def done(self) -> int:
        """Lines that are behind us."""
        return self.ok + self.fail + self.skip

    def bar(self) -> str:
        """One line of progress."""
        filled = CELLS * self.done // max(self.total, 1)
        return (
            f"[{'#' * filled}{' ' * (CELLS - filled)}] {self.done}/{self.total} "
            f"ok: {self.ok} fail: {self.fail} skip: {self.skip}"
        )


@dataclass(frozen=True, slots=True)
class AskedGateway:
    """Where to, with which key, and how patiently."""

    url: str
    headers: dict[str, str]
    timeout_s: float
    retries: int

    def post(self, path: str, body: bytes) -> Told:
        """POST, again while that may help; raises ``ClickException`` when nobody answers."""
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                told = ask(self.url, path, body, headers=self.headers, timeout_s=self.timeout_s)
            except click.ClickException:
                if last:
                    raise
                time.sleep(_pause(None, attempt))
                continue
            if last or told.status not in _AGAIN or told.headers.get("x-should-retry") == "false":
                break
            time.sleep(_pause(told.headers.get("retry-after"), attempt))
        return told

    def letters(self) -> list[dict[str, Any]]:
        """Every open letter of the gateway, oldest first."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            told = ask(
                self.url, f"/api/v1/dlq?limit=1000{after}", headers=self.headers,
                timeout_s=self.timeout_s,
            )  # fmt: skip
            page = told.json()
            if told.status != 200:
                raise click.ClickException(f"{self.url}: {_reason(told)}")
            found += page["entries"]
            if page["next"] is None:
                found.reverse()
                found.sort(key=_dropped_at)  # those of two workers come in any order
                return found
            after = f"&after={page['next']}"


@click.command("replay")
@click.option("--queue-file", "-f", metavar="FILE", help="Lines to replay, `-` for stdin.")
@click.option("--all", "everything", is_flag=True, help="Every dead letter of the gateway itself.")
@click.option(
    "--orchestrator-url", "--url", "url", envvar="ORCHESTRATOR_URL", show_default=True,
    default="http://127.0.0.1:8080", help="The gateway.",
)  # fmt: skip
@click.option("--api-key", envvar="API_KEY", help="An admin's key, where keys are asked for.")
@click.option("--max-retries", type=click.IntRange(0, 100), default=3, show_default=True,
              help="Further tries of a line that was not answered.")  # fmt: skip
@click.option("--delay-ms", type=click.IntRange(0, 600_000), default=50, show_default=True,
              help="Pause between two lines.")  # fmt: skip
@click.option("--request-timeout-secs", type=click.FloatRange(0.1, 3600), default=30.0,
              show_default=True, help="Longest wait for an answer.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be asked, and ask nothing.")
def replay(
    queue_file: str | None,
    everything: bool,
    url: str,
    api_key: str | None,
    max_retries: int,
    delay_ms: int,
    request_timeout_secs: float,
    dry_run: bool,
) -> int:
    """Ask dropped requests again; exit code 1 when one was not answered."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    gateway = AskedGateway(url, headers, request_timeout_secs, max_retries)
    if everything and queue_file is not None:
        raise click.UsageError("--all and --queue-file are two sources: keep one of them")
    if everything:
        lines = [orjson.dumps(letter) for letter in gateway.letters()]
    else:
        if queue_file is None and sys.stdin.isatty():
            raise click.UsageError("give --queue-file FILE, lines on stdin, or --all")
        lines = list(_lines(queue_file or "-"))
    tally = Tally(len(lines))
    began_at = time.monotonic()
    for number, line in enumerate(lines, 1):
        if number > 1 and delay_ms and not dry_run:
            time.sleep(delay_ms / 1e3)
        _one(gateway, number, line, tally, dry_run=dry_run)
        click.echo(f"\r{tally.bar()}", nl=False, err=True)
    click.echo(err=True)
    took_s = time.monotonic() - began_at
    click.echo(
        f"replayed {tally.ok} of {tally.total} in {took_s:.1f} s, "
        f"failed {tally.fail}, skipped {tally.skip}"
    )
    return ExitCode.FAILED if tally.fail else ExitCode.OK


def _lines(name: str) -> Iterator[bytes]:
    """Lines that say something; raises ``ClickException`` when the file cannot be read."""
    try:
        text = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise click.ClickException(f"{name}: {error.strerror}") from None
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith(b"#"):
            yield line


def _one(gateway: AskedGateway, number: int, line: bytes, tally: Tally, *, dry_run: bool) -> None:
    try:
        asked = orjson.loads(line)
    except orjson.JSONDecodeError:
        asked = None
    where = _target(asked)
    if where is None and isinstance(asked, dict) and asked.keys() & _OF_A_RECORD:
        _say(number, "a dropped record without its request_id: there is nothing to ask")
        tally.skip += 1
        return
    if where is None:
        _say(number, "neither a request with a prompt nor a record with a request_id")
        tally.fail += 1
        return
    path, body = where
    if dry_run:
        click.echo(f"line {number}: POST {path}")
        tally.skip += 1
        return
    try:
        told = gateway.post(path, body)
    except click.ClickException as error:
        _say(number, error.message)
        tally.fail += 1
        return
    if 200 <= told.status < 300:
        tally.ok += 1
    elif told.status == 404 and body == b"":
        _say(number, "the gateway has no letter of it")
        tally.skip += 1
    elif told.status == 409 and _code(told) == "letter_redacted":
        _say(number, "the text of its request was not kept: there is nothing to ask")
        tally.skip += 1
    elif told.status == 409 and _code(told) == "letter_locked":
        _say(number, "its request is sealed with a key that the gateway does not have")
        tally.skip += 1
    else:
        _say(number, _reason(told))
        tally.fail += 1


def _target(asked: Any) -> tuple[str, bytes] | None:
    """Path and body that a line asks for."""
    if not isinstance(asked, dict):
        return None
    if "prompt" in asked or "input" in asked:
        return "/api/v1/infer", orjson.dumps(asked)
    call_id = asked.get("request_id")
    if isinstance(call_id, str) and call_id.replace("-", "").isalnum():
        return f"/api/v1/dlq/{call_id}/replay", b""
    return None


def _dropped_at(letter: dict[str, Any]) -> float:
    return float(letter["dropped_at"])


def _say(number: int, why: str) -> None:
    click.echo(f"\r{'':{CELLS + 50}}\rline {number}: {why}", err=True)


def _reason(told: Told) -> str:
    try:
        error = orjson.loads(told.body)["error"]
        return f"{told.status} {error['message']}"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"status {told.status}"


def _code(told: Told) -> str:
    try:
        return str(orjson.loads(told.body)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def _pause(retry_after: str | None, attempt: int) -> float:
    """Seconds to wait: what the gateway asks for, else 100 ms, 200 ms, …"""
    if retry_after is not None:
        try:
            return min(max(float(retry_after), 0.0), MOST_PAUSE_S)
        except ValueError:
            pass
        try:
            at = parsedate_to_datetime(retry_after).timestamp()
            return min(max(at - time.time(), 0.0), MOST_PAUSE_S)
        except (ValueError, TypeError):
            pass
    return min(FIRST_PAUSE_S * 2.0**attempt, MOST_PAUSE_S)
