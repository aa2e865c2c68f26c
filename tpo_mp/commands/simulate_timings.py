"""``tpo-mp simulate timings``: what a recording says of time, as numbers for a distribution."""

from __future__ import annotations

from pathlib import Path

import click

from tpo_mp.errors import ExitCode
from tpo_mp.simulator import recordings

from .asking import failed


@click.command("timings")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--of",
    "what",
    type=click.Choice(["first", "between", "all"]),
    default="first",
    show_default=True,
    help="To the first event, between events, or to the end.",
)
@click.option("--model", help="Only of this model.")
def COMMAND(file: Path, what: str, model: str | None) -> int:  # noqa: N802
    """Print the milliseconds of a recording, a line each.

    The lines are the `file` of an `empirical` distribution.
    """
    found = recordings.read(file)
    if model is not None:
        found = tuple(one for one in found if one.model == model)
    times = list(recordings.timings(found, what))
    if not times:
        raise failed(f"{file}: it has no such times")
    for time in times:
        click.echo(f"{time:.3f}")
    return ExitCode.OK
