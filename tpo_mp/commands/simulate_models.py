"""``tpo-mp simulate models``: the models a running simulator serves, or those there are."""

from __future__ import annotations

import click

from tpo_mp.errors import ExitCode
from tpo_mp.simulator.catalog import MODELS

from .asking import ask, failed
from .forms import json_of
from .model_rows import KINDS, model_row, of_kind


@click.command("models")
@click.option("--url", "-u", help="Ask a running one; without it, list the catalogue.")
@click.option("--kind", "-k", type=click.Choice(KINDS),
              help="Only models of this kind.")  # fmt: skip
@click.option("--format", "-f", "form", type=click.Choice(["table", "json"]), default="table",
              show_default=True, help="How to print them.")  # fmt: skip
def COMMAND(url: str | None, kind: str | None, form: str) -> int:  # noqa: N802
    """List models, what each is for and how long its vectors are."""
    names = MODELS if url is None else _served(url)
    rows = of_kind([model_row(name) for name in names], kind)
    if form == "json":
        click.echo(json_of(rows))
        return ExitCode.OK
    width = max((len(row["id"]) for row in rows), default=0)
    for row in rows:
        size = f"{row['dimensions']} numbers" if row["kind"] == "embedding" else ""
        click.echo(f"{row['id']:<{width}}  {row['kind']:<10}  {size}".rstrip())
    return ExitCode.OK


def _served(url: str) -> list[str]:
    told = ask(url, "/v1/models")
    found = told.json()
    data = found.get("data") if isinstance(found, dict) else None
    if told.status != 200 or not isinstance(data, list):
        raise failed(f"{url}: /v1/models answered {told.status}")
    return [str(entry.get("id")) for entry in data if isinstance(entry, dict)]
