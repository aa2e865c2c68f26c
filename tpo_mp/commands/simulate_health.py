"""``tpo-mp simulate health``: whether a running simulator lives and serves."""

from __future__ import annotations

import time

import click
import orjson

from tpo_mp.errors import ExitCode

from .asking import ask

URL = "http://127.0.0.1:8080"


@click.command("health")
@click.option("--url", "-u", default=URL, show_default=True, help="Where it runs.")
@click.option("--readiness", "-r", is_flag=True, help="Ask whether it serves, not whether it runs.")
@click.option("--timeout", "-t", "timeout_s", type=click.FloatRange(0.01, 600), default=5.0,
              show_default=True, help="Seconds to wait for an answer.")  # fmt: skip
@click.option("--format", "-f", "form", type=click.Choice(["text", "json"]), default="text",
              show_default=True, help="Print one line, or the whole answer.")  # fmt: skip
@click.option("--watch", "-w", type=click.IntRange(1, 1_000_000), default=1, show_default=True,
              metavar="TIMES", help="Ask so many times.")  # fmt: skip
@click.option("--interval", type=click.FloatRange(0, 3600), default=5.0, show_default=True,
              help="Seconds between two times.")  # fmt: skip
def COMMAND(  # noqa: N802 - the name every file of this folder exports
    url: str, readiness: bool, timeout_s: float, form: str, watch: int, interval: float
) -> int:
    """Ask a simulator how it is; exit code 1 when it is not well."""
    code = ExitCode.OK
    for number in range(watch):
        if number:
            time.sleep(interval)
        told = ask(url, "/ready" if readiness else "/health", timeout_s=timeout_s)
        found = told.json()
        well = told.status == 200
        code = ExitCode.OK if well else ExitCode.FAILED
        if form == "json":
            click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        else:
            word = "well" if well else "not well"
            said = found.get("status", "") if isinstance(found, dict) else ""
            click.echo(f"{url}: {word} ({told.status} {said})".replace(" )", ")"))
    return code
