"""``tpo-mp simulate generate``: what a simulator would say, made in this process without a server.

Answers are those that ``tpo-mp simulate`` gives to the same request under the same seed.
Known weakness: errors, faults and times of the config do not act here; only its words do.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Generator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import orjson

from tpo_mp.config.load import build, load
from tpo_mp.dialects.body import with_fields
from tpo_mp.dialects.canonical import TextBlock, ToolUseBlock
from tpo_mp.errors import ExitCode
from tpo_mp.pipeline.codecs import codec
from tpo_mp.simulator.made_requests import DIALECTS, FAMILIES, bodies, chat_body
from tpo_mp.simulator.options import SimulatorOptions, speech_of
from tpo_mp.simulator.provider import Answered, RefusalOrdered, SimulatedProvider
from tpo_mp.simulator.rules import RuleBook
from tpo_mp.simulator.sample_configs import PROFILES, chosen, written
from tpo_mp.types import Dialect

from .asking import failed
from .forms import FORMS, printed
from .simulate_config import effective

MOST_REQUESTS: Final = 1_000_000
_CONFIG: Final = click.option(
    "--config", "-c", "config_path", type=click.Path(path_type=Path),
    help="Config file whose words and rules count.",
)  # fmt: skip
_SEED: Final = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of all that is made up [0]."
)
_FAMILY: Final = click.option(
    "--provider", "-p", "family", type=click.Choice(FAMILIES), default="openai",
    show_default=True, help="Whose API it is written in.",
)  # fmt: skip


@click.group("generate")
def COMMAND() -> None:  # noqa: N802 - the name every file of this folder exports
    """Make answers, vectors, requests or a config, without a server."""


@COMMAND.command()
@click.option("--model", "-m", default="gpt-4", show_default=True, help="Model that is asked.")
@click.option("--message", "-u", help="What is asked; without it, stdin is.")
@click.option("--system", "-s", help="What the model is told to be.")
@click.option("--max-tokens", type=click.IntRange(1, 8192), default=256, show_default=True,
              help="Longest answer.")  # fmt: skip
@click.option("--temperature", "-t", type=click.FloatRange(0, 2), help="Sent along, if given.")
@_FAMILY
@click.option("--format", "-f", "form", type=click.Choice(["text", "json", "stream"]),
              default="text", show_default=True,
              help="Its words, the whole body, or a stream's events.")  # fmt: skip
@_SEED
@_CONFIG
def chat(
    model: str, message: str | None, system: str | None, max_tokens: int,
    temperature: float | None,
    family: str, form: str, seed: int | None, config_path: Path | None,
) -> int:  # fmt: skip
    """Answer one chat request."""
    if message is None:
        message = sys.stdin.read()
    body = chat_body(
        family, model, message, system=system, max_tokens=max_tokens, temperature=temperature,
        stream=form == "stream",
    )  # fmt: skip
    dialect = DIALECTS[family]
    sent = orjson.dumps(body)
    if dialect is Dialect.GEMINI:
        sent = with_fields(sent, model=model)
    provider = _provider(config_path, seed)
    try:
        answered = _made(provider.generate(codec(dialect), dialect, sent, ""))
    except RefusalOrdered as refused:
        raise failed(
            f"a rule refuses this request: {refused.order.name or refused.order.status}"
        ) from None
    if form == "text":
        click.echo(_words(answered))
    elif form == "json":
        click.echo(answered.body())
    else:
        out = sys.stdout.buffer
        for event, _ in answered.frames(True, None):
            out.write(event)
            out.flush()
    return ExitCode.OK


@COMMAND.command()
@click.option("--model", "-m", default="text-embedding-ada-002", show_default=True,
              help="Model that is asked.")  # fmt: skip
@click.option("--text", "-t", "texts", multiple=True, required=True, help="What is embedded; any "
              "number.")  # fmt: skip
@click.option("--dimensions", "-d", type=click.IntRange(1, 8192), help="Length of the vectors.")
@click.option("--format", "-f", "form", type=click.Choice(["json", "base64", "array"]),
              default="json", show_default=True,
              help="The whole body, or a line per vector: 32-bit floats, or numbers.")  # fmt: skip
@_SEED
@_CONFIG
def embedding(
    model: str, texts: tuple[str, ...], dimensions: int | None, form: str, seed: int | None,
    config_path: Path | None,
) -> int:  # fmt: skip
    """Embed texts."""
    body: dict[str, Any] = {"model": model, "input": list(texts)}
    if dimensions is not None:
        body["dimensions"] = dimensions
    if form == "base64":
        body["encoding_format"] = "base64"
    provider = _provider(config_path, seed)
    answered = asyncio.run(provider.embed(Dialect.OPENAI_EMBEDDINGS, orjson.dumps(body)))
    if form == "json":
        click.echo(answered.body())
        return ExitCode.OK
    for entry in orjson.loads(answered.body())["data"]:
        vector = entry["embedding"]
        click.echo(vector if form == "base64" else orjson.dumps(vector))
    return ExitCode.OK


@COMMAND.command()
@click.option("--count", "-c", type=click.IntRange(1, MOST_REQUESTS), default=10,
              show_default=True, help="How many.")  # fmt: skip
@_FAMILY
@click.option("--model", "-m", help="Model that all of them ask [one of the catalogue's].")
@click.option("--output", "-o", type=click.File("wb", lazy=True), default="-",
              help="File to write [stdout].")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="Another seed, other requests.")  # fmt: skip
def requests(count: int, family: str, model: str | None, output: BinaryIO, seed: int) -> int:
    """Make up request bodies, a JSON line each: chats of several kinds, some streamed.

    Google's have neither model nor streaming in them, because its paths say both.
    """
    of = next(one for one in FAMILIES if one == family)
    try:
        output.writelines(
            orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
            for body in islice(bodies(of, seed, model), count)
        )
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise failed(f"{output.name}: {error.strerror or error}") from None
    return ExitCode.OK


@COMMAND.command()
@click.option("--format", "-f", "form", type=click.Choice(FORMS), default="toml",
              show_default=True, help="How it is written; TOML is commented.")  # fmt: skip
@click.option("--profile", "-p", type=click.Choice(PROFILES), default="standard",
              show_default=True, help="How lifelike it is.")  # fmt: skip
@click.option("--full", is_flag=True, help="Every option, those at their default too.")
def config(form: str, profile: str, full: bool) -> int:
    """Print a config; `simulate config init` writes one to a file."""
    of = next(one for one in PROFILES if one == profile)
    if full and form == "toml":
        click.echo(written(of), nl=False)
        return ExitCode.OK
    tree = chosen(of)
    if full:
        tree |= effective(build(chosen(of), {"simulate": True}, {}, None))
    click.echo(printed(tree, form))
    return ExitCode.OK


def _provider(config_path: Path | None, seed: int | None) -> SimulatedProvider:
    given: dict[str, Any] = {"simulate": True} | ({} if seed is None else {"seed": seed})
    options = load(config_path, given, os.environ).backends[0]
    assert isinstance(options, SimulatorOptions)
    rules = None
    if options.rules or options.strict:
        rules = RuleBook(options.rules, options.strict, lambda _name: 1)  # each rule's first time
    return SimulatedProvider(speech_of(options), rules)


def _made(steps: Generator[None, None, Answered]) -> Answered:
    """The answer at the end of its steps; nobody else waits here."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            answered: Answered = done.value
            return answered


def _words(answered: Answered) -> str:
    assert answered.reply is not None
    said = []
    for block in answered.reply.choices[0].blocks:
        if isinstance(block, TextBlock):
            said.append(block.text)
        elif isinstance(block, ToolUseBlock):
            said.append(f"{block.name}({block.arguments})")
    return "\n".join(said)
