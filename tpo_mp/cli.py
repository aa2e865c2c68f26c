"""The command line: ``tpo-mp serve | simulate | check | schema | status | reload | …``.

A wrong option, a refused config and a failed command are each a line or a few on stderr and an exit
code of ``ExitCode``, never a traceback.

Invariants: a command imports only what it needs, when it runs; secrets appear in no option.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from . import __version__
from .commands.lazy import FolderGroup, WithFiles, stands_alone
from .errors import ConfigError, ExitCode, TpoError

F = TypeVar("F", bound=Callable[..., Any])

_CONFIG_VARIABLES = ["TPO_CONFIG", "CONFIG_FILE"]


def _apply(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_config = click.option(
    "--config", "-c", "config_path", type=click.Path(path_type=Path), envvar=_CONFIG_VARIABLES,
    help="Config file, TOML or YAML; without one: the echo backend on loopback.",
)  # fmt: skip

_process = _apply([
    click.option("--host", help="Address to bind [127.0.0.1]."),
    click.option("--port", type=click.IntRange(0, 65535), help="Main port, 0 for any [8080]."),
    click.option("--ops-port", type=click.IntRange(0, 65535), help="Ops port, 0 for any [9090]."),
    click.option("--workers", metavar="N|auto", help="Worker processes [auto: one per core]."),
    click.option("--state-dir", metavar="DIR", help="State directory [per user and port]."),
    click.option("--log-format", type=click.Choice(["json", "pretty"]), help="Shape of log lines."),
    click.option("--log-level", help="Least severe log line written [info]."),
    click.option("--insecure", is_flag=True, help="Allow a public bind without authentication."),
])  # fmt: skip

_overrides = _apply([
    _process,
    click.option(
        "--backend", "--worker", "--provider", "backend", metavar="KIND",
        help="Serve with one backend of this kind: echo, openai, …",
    ),
    click.option("--model", metavar="NAME_OR_PATH", help="Model that --backend serves."),
    click.option("--base-url", metavar="URL", help="Where --backend is reached."),
    click.option(
        "--max-spend", type=float, metavar="USD",
        help="Dollars the host may spend in all, by [prices]; it outlives restarts.",
    ),
])  # fmt: skip

_running = _apply(
    [
        click.option("--state-dir", metavar="DIR", help="State directory of the running gateway."),
        click.option("--port", type=click.IntRange(0, 65535), help="Its main port [8080]."),
        _config,
    ]
)


@click.group(cls=WithFiles, invoke_without_command=True)
@click.version_option(__version__, "--version", "-V", message="tpo-mp %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """LLM gateway and orchestrator: one pinned process per core, one truth per host."""
    if context.invoked_subcommand is None:
        raise click.UsageError(f"which command? {', '.join(cli.list_commands(context))}")


@cli.command()
@_config
@_overrides
def serve(config_path: Path | None, **flags: Any) -> int:
    """Run the gateway until told to stop."""
    from .supervisor.serve import ServeOptions
    from .supervisor.serve import serve as run

    return run(ServeOptions(config_path=config_path, flags=_given(flags)))


@cli.group(cls=FolderGroup)
@_config
@_process
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of all it makes up [0].")
@click.option("--rules", type=click.Path(), metavar="FILE", help="Answers for requests of a kind.")
@click.option("--latency-multiplier", type=float, metavar="X", help="Stretch every wait [1].")
@click.option("--no-latency", is_flag=True, help="Wait for nothing, whatever the config says.")
@click.option("--scenario", metavar="NAME", help="Scenario that is active from the start.")
@click.option("--replay", type=click.Path(), metavar="FILE", help="Play recorded answers again.")
@click.option("--replay-speed", type=click.FloatRange(0, 1e6), help="2: twice as fast, 0: no wait.")
@click.option(
    "--lora-modules",
    multiple=True,
    metavar="NAME=PATH",
    help="A LoRA adapter that is there from the start; may come again.",
)
@click.option("--strict", is_flag=True, help="Refuse what no rule matches, or nobody recorded.")
@click.pass_context
def simulate(context: click.Context, /, config_path: Path | None, **flags: Any) -> int:
    """Run a simulated provider: OpenAI's and Anthropic's APIs, with errors and faults to order.

    Without a command it serves until told to stop; the commands help to use one.
    """
    if not stands_alone(context):
        return ExitCode.OK
    from .supervisor.serve import ServeOptions
    from .supervisor.serve import serve as run

    return run(ServeOptions(config_path=config_path, flags=_given(flags) | {"simulate": True}))


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@_config
@_overrides
@click.option("--strict", is_flag=True, help="Warnings fail too.")
@click.option("--print", "print_", is_flag=True, help="Print the canonical form.")
def check(
    file: Path | None, config_path: Path | None, strict: bool, print_: bool, **flags: Any
) -> int:
    """Check a config as `serve` would read it, without running anything."""
    from .config.load import load
    from .config.render import check_text

    path = file or config_path
    config = load(path, _given(flags), os.environ)
    if print_:
        click.echo(check_text(config), nl=False)
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    if strict and config.warnings:
        return ExitCode.USAGE
    if not print_:
        click.echo(f"{path or 'defaults'}: ok")
    return ExitCode.OK


@cli.command()
def schema() -> int:
    """Print the JSON Schema of the config file."""
    from .config.schema import build

    built = build(lambda said: click.echo(f"warning: {said}", err=True))
    click.echo(json.dumps(built, indent=2))
    return ExitCode.OK


@cli.command()
@_running
@click.option("--json", "as_json", is_flag=True, help="Print everything, as JSON.")
def status(as_json: bool, **where: Any) -> int:
    """Show a running gateway's processes."""
    answer = _ask("status", where)
    click.echo(json.dumps(answer, indent=2) if as_json else status_text(answer))
    return ExitCode.OK


@cli.command()
@_running
def reload(**where: Any) -> int:
    """Read the config again; a refused one changes nothing."""
    answer = _ask("reload", where)
    for warning in answer.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)
    if changed := answer.get("restart_for"):
        click.echo(f"warning: takes effect at the next start: {', '.join(changed)}", err=True)
    click.echo(f"reloaded, config epoch {answer.get('epoch')}")
    return ExitCode.OK


@cli.command()
@_running
def restart(**where: Any) -> int:
    """Replace every process, one after the other, on the same sockets."""
    _ask("restart", where, timeout_s=24 * 3600.0)
    click.echo("restarted")
    return ExitCode.OK


@cli.command()
@_running
@click.option("--quick", is_flag=True, help="Do not let open calls finish.")
@click.option("--no-wait", is_flag=True, help="Return before it has ended.")
def stop(quick: bool, no_wait: bool, **where: Any) -> int:
    """Stop a running gateway, letting open calls finish."""
    state_dir = _state_dir(**where)
    _ask("stop", {"state_dir": state_dir}, quick=quick)
    if not no_wait:
        _wait_until_gone(state_dir)
        click.echo("stopped")
    return ExitCode.OK


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in flags.items() if value is not None and value is not False
    }


def _state_dir(
    state_dir: Path | str | None = None, port: int | None = None, config_path: Path | None = None
) -> Path:
    from .config.load import server_of
    from .config.state_path import state_path

    if state_dir is not None:
        return Path(state_dir)
    server = server_of(config_path, {"port": port}, os.environ)
    return state_path(server.state_dir, server.port)


def _ask(command: str, where: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Ask the running supervisor; raises with its problems when it says no."""
    from .supervisor.client import request

    answer = request(_state_dir(**where), command, **arguments)
    if answer.get("ok", True):
        return answer
    reasons = answer.get("problems") or [answer.get("error", f"{command} failed")]
    raise click.ClickException("\n".join(str(reason) for reason in reasons))


def _wait_until_gone(state_dir: Path) -> None:
    """Wait for the lock of the pid file, which its holder keeps to the end."""
    import fcntl  # not on Windows, where this program says so in one line

    from .supervisor.statedir import PID_FILE

    with suppress(FileNotFoundError), (state_dir.expanduser() / PID_FILE).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def status_text(answer: dict[str, Any]) -> str:
    """Render a status answer: plain facts first, then one table of all processes."""
    facts: list[str] = []
    processes: list[dict[str, Any]] = []
    for name, value in answer.items():
        if name == "backends":
            named = ", ".join(f"{backend['name']} ({backend['kind']})" for backend in value)
            facts.append(f"backends: {named}")
        elif isinstance(value, dict) and "state" in value:
            processes.append({"process": name} | value)
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            processes += [{"process": _title(name, row)} | row for row in value]
        elif name != "ok":
            facts.append(f"{name}: {_cell(value)}")
    for row in processes:
        row.pop("slot", None)
        row.pop("engine", None)
    return "\n".join([*facts, "", _columns(processes)] if processes else facts)


def _title(group: str, row: dict[str, Any]) -> str:
    if "engine" in row:
        return f"engine {row['engine']}"
    return f"slot {row['slot']}" if "slot" in row else group


def _columns(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    if value is None or value in ([], {}):
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        click.echo(f"tpo-mp: {line}", err=True)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    if sys.platform == "win32":
        _fail("Windows is not supported", ExitCode.FAILED)
    try:
        code = cli.main(arguments, prog_name="tpo-mp", standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except ConfigError as error:
        _fail(error.message, ExitCode.USAGE)
    except TpoError as error:
        _fail(error.message, getattr(error, "exit_code", ExitCode.FAILED))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(ExitCode.FAILED)
    except BrokenPipeError:
        # Whoever read our output left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FAILED)
    sys.exit(code or ExitCode.OK)
