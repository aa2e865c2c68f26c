"""``python -m hardware.mlx_engine``: serve one model until the process is told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from typing import TypeVar

import click
from aiohttp import web

from tpo_mp.config.engines import ENGINE_RINGS
from tpo_mp.errors import ConfigError, ExitCode

_ADDRESS_IN_USE = 98, 48
SHUTDOWN_S = 2.0
T = TypeVar("T")


@click.command()
@click.option("--model", required=True, help="A folder, or a repository's name.")
@click.option("--served-model-name", default="", help="Its name for clients; default: MODEL.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="0: a free one.")  # fmt: skip
@click.option("--max-context", type=click.IntRange(16), default=None,
              help="Tokens of prompt and answer; default: what the model is made for.")  # fmt: skip
@click.option("--max-running", type=click.IntRange(1, 1024), default=32, show_default=True,
              help="Sequences computed at the same time.")  # fmt: skip
@click.option("--max-waiting", type=click.IntRange(0, 65536), default=256, show_default=True,
              help="Sequences that may wait; more are answered 503.")  # fmt: skip
@click.option("--prompt-cache-bytes", type=click.IntRange(0), default=1 << 30, show_default=True,
              help="Memory for what was computed of earlier prompts.")  # fmt: skip
def main(
    model: str,
    served_model_name: str,
    host: str,
    port: int,
    max_context: int | None,
    max_running: int,
    max_waiting: int,
    prompt_cache_bytes: int,
) -> None:
    """Serve one MLX model by HTTP: OpenAI's chats and completions, Anthropic's messages."""
    try:
        from .generation import Bounds
    except ImportError as e:
        _leave(f"mlx-lm is not installed ({e}): pip install 'tpo-mp[mlx]'", ExitCode.USAGE)
    bounds = Bounds(running=max_running, waiting=max_waiting, cache_bytes=prompt_cache_bytes)
    name = served_model_name or model
    with asyncio.Runner(loop_factory=_loop) as runner:
        code = runner.run(_serve(model, name, host, port, max_context, bounds))
    sys.stdout.flush()
    sys.stderr.flush()
    # A step may still run in the model's thread, and MLX does not outlive an interpreter that ends.
    os._exit(code)


async def _serve(
    model: str, name: str, host: str, port: int, context: int | None, bounds: object
) -> int:
    from .generation import Bounds, Generation
    from .rings import RingEnds
    from .service import MOST_BODY_BYTES, Service, no_tracebacks

    assert isinstance(bounds, Bounds)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    generation = Generation(model, bounds, loop)
    service = Service(generation, name, context)
    app = service.app()
    app.middlewares.append(no_tracebacks)
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as e:
        taken = e.errno in _ADDRESS_IN_USE
        _say(f"cannot listen on {host}:{port}: {'it is taken' if taken else e.strerror}")
        return ExitCode.ADDRESS_IN_USE if taken else ExitCode.BOOT_FAILED
    ends = None
    if ENGINE_RINGS in os.environ:
        ticket = json.loads(os.environ[ENGINE_RINGS])
        ends = RingEnds(ticket, service.serve, MOST_BODY_BYTES, loop)
        service.gauges.waiting = ends.behind
    began = time.monotonic()
    _say(f"loading {model}")
    generation.start()
    try:
        loaded = await _first(generation.loaded, stop)
        if loaded is not None:
            service.opened(loaded)
            if ends is not None:
                ends.open()
            took = time.monotonic() - began
            _say(f"ready after {took:.1f} s: {name}, {loaded.bytes / 1e6:.0f} MB, "
                 f"{loaded.context} tokens of context")  # fmt: skip
            broken = await _first(generation.broken, stop)
            if broken is not None:
                _say(f"the model's thread ended: {broken}")
                return ExitCode.FAILED
    except ConfigError as e:
        _say(str(e))
        return ExitCode.BOOT_FAILED
    finally:
        if ends is not None:
            await ends.close(SHUTDOWN_S)
        await runner.cleanup()
        generation.stop()
    return ExitCode.OK


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


async def _first(future: asyncio.Future[T], stop: asyncio.Event) -> T | None:
    """What comes, or ``None`` when the process is told to stop first."""
    waits = asyncio.ensure_future(stop.wait())
    await asyncio.wait((future, waits), return_when=asyncio.FIRST_COMPLETED)
    waits.cancel()
    return future.result() if future.done() else None


def _say(words: str) -> None:
    click.echo(f"mlx: {words}", err=True)


def _leave(words: str, code: ExitCode) -> None:
    _say(words)
    sys.exit(code)


if __name__ == "__main__":
    main()
