"""``tpo-mp simulate config``: a file to start from, whether one is right, what it amounts to.

A file is read as ``tpo-mp simulate --config`` reads it, environment included.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from tpo_mp.config.load import load
from tpo_mp.config.prices import Prices, PricesSection
from tpo_mp.config.render import canonical
from tpo_mp.config.simulating import ADMIN, KIND, OF_A_BACKEND
from tpo_mp.config.text import Tree
from tpo_mp.config.tree import Config
from tpo_mp.errors import ExitCode
from tpo_mp.simulator.options import SimulatorOptions
from tpo_mp.simulator.sample_configs import PROFILES, written
from tpo_mp.simulator.timing import INSTANT, Latency

from .asking import failed
from .forms import FORMS, columns, json_of, printed
from .model_rows import KINDS, model_row, of_kind

_FILE: Final = click.argument("file", required=False, type=click.Path(path_type=Path))


@click.group("config")
def COMMAND() -> None:  # noqa: N802 - the name every file of this folder exports
    """Write, check and read config files of a simulator."""


@COMMAND.command()
@click.option("--output", "-o", "path", default="tpo-simulator.toml", show_default=True,
              type=click.Path(dir_okay=False, path_type=Path),
              help="File to write; - writes to stdout.")  # fmt: skip
@click.option("--profile", "-p", type=click.Choice(PROFILES), default="standard",
              show_default=True, help="How much it says, and how lifelike it is.")  # fmt: skip
@click.option("--force", "-f", is_flag=True, help="Overwrite a file that is there.")
def init(path: Path, profile: str, force: bool) -> int:
    """Write a config file with every option, its default, bounds and meaning.

    minimal: three options and nothing else.  standard: timings and prices of real models.
    production: enforced rate limits, a journal and some failures as well.
    """
    text = written(next(one for one in PROFILES if one == profile))
    if str(path) == "-":
        click.echo(text, nl=False)
        return ExitCode.OK
    if path.suffix != ".toml":
        raise click.UsageError(f"{path}: the file is TOML, so its name must end in .toml")
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise failed(f"{path}: there already; --force overwrites it") from None
    except OSError as error:
        raise failed(f"{path}: {error.strerror or error}") from None
    click.echo(f"{path}: written ({profile})")
    return ExitCode.OK


@COMMAND.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Warnings fail too.")
def validate(file: Path, strict: bool) -> int:
    """Check a file: a line with path, value and reason for each problem, and exit code 2."""
    config = _loaded(file)
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    if strict and config.warnings:
        return ExitCode.USAGE
    click.echo(f"{file}: ok")
    return ExitCode.OK


@COMMAND.command()
@_FILE
@click.option("--format", "-f", "form", type=click.Choice(FORMS), default="toml",
              show_default=True, help="How to print them.")  # fmt: skip
def show(file: Path | None, form: str) -> int:
    """Print every option of [simulator] as FILE and the environment make it; secrets as ***."""
    click.echo(printed(effective(_loaded(file)), form))
    return ExitCode.OK


@COMMAND.command()
@_FILE
@click.option("--kind", "-k", type=click.Choice(KINDS), help="Only models of this kind.")
@click.option("--format", "-f", "form", type=click.Choice(["table", "json"]), default="table",
              show_default=True, help="How to print them.")  # fmt: skip
def models(file: Path | None, kind: str | None, form: str) -> int:
    """List the models that FILE serves: limits in tokens, timing, dollars per million tokens."""
    config = _loaded(file)
    options = config.backends[0]
    assert isinstance(options, SimulatorOptions)
    rows = of_kind([_known(name, options, config.prices) for name in options.models], kind)
    if form == "json":
        click.echo(json_of(rows))
        return ExitCode.OK
    head = ("model", "kind", "context", "output", "vector", "timing", "in $", "out $")
    cells = ("id", "kind", "context", "most_output", "dimensions", "timing", "input", "output")
    click.echo(columns([head, *([str(row.get(cell, "-")) for cell in cells] for row in rows)]))
    return ExitCode.OK


def _loaded(file: Path | None) -> Config:
    return load(file, {"simulate": True}, os.environ)


def effective(config: Config) -> Tree:
    """The options of the simulator in force, as a config tree of their own."""
    tree = canonical(config)
    options = {k: v for k, v in tree["backends"][0].items() if k not in OF_A_BACKEND}
    admin = tree["surfaces"].get(ADMIN)
    return {KIND: options} | ({"surfaces": {ADMIN: admin}} if admin else {})


def _known(name: str, options: SimulatorOptions, others: PricesSection) -> dict[str, Any]:
    row = model_row(name)
    plain = f"{options.first_token_ms:g} + {options.token_ms:g} ms"
    otherwise = plain if options.first_token_ms or options.token_ms else INSTANT
    row["timing"] = Latency(options.latency, []).name_of(name) or otherwise
    own = PricesSection(builtin=False, models=options.prices)
    price = Prices(own).of(name) or Prices(others).of(name)
    if price is not None:
        row |= {"input": price.input, "output": price.output}
    return row
