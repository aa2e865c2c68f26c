"""``tpo-mp simulate record``: a proxy that writes down what a provider answers, and when.

It stands between a program and the provider; what it writes, ``simulate --replay`` plays.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from tpo_mp.errors import ExitCode


@click.command("record")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--upstream", required=True, metavar="URL", help="The provider, without /v1.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="Port to bind, 0 for any.")  # fmt: skip
@click.option("--most", type=click.IntRange(1, 20_000), default=10_000, show_default=True,
              help="Requests to write down; more are passed on unwritten.")  # fmt: skip
def COMMAND(file: Path, upstream: str, host: str, port: int, most: int) -> int:  # noqa: N802
    """Pass requests on to a provider and append its answers to FILE, until told to stop.

    Keys go to the provider and nowhere else.
    """
    from .recorder import Recorder  # it brings an HTTP server and client along

    async def run() -> None:
        recorder = Recorder(file, upstream, most)
        url = await recorder.start(host, port)
        click.echo(f"tpo-mp recording {url}")
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        try:
            await stopped.wait()
        finally:
            await recorder.close()
        click.echo(f"{recorder.written} answers in {file}, {recorder.unwritten} passed on")

    try:
        asyncio.run(run())
    except OSError as error:
        where = f"{file}" if error.filename else f"{host}:{port}"
        raise click.ClickException(f"{where}: {error.strerror or error}") from None
    return ExitCode.OK
