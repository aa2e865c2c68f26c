"""Whoever aborts through an SDK aborts the upstream: at once, waiting or streaming, in any dialect.

Every SDK leaves by its own means: the JavaScript ones by an ``AbortSignal``, the Python ones by
``stream.close()`` and by cancelling the task.
Client and upstream read the same monotonic clock.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

from tests.conftest import StartGateway
from tests.support.dialects import REPLIES, streamed
from tests.support.gateway import Gateway
from tests.support.javascript import Node
from tests.support.tiny_model import MlxServer
from tests.support.upstream import Upstream
from tests.support.wait import quickest, wait_for

PROMPT_CANCEL_S = 0.05
TIMES = 5
SDKS = ("openai-python", "anthropic-python", "openai-javascript", "anthropic-javascript")
BACKENDS = {"gpt-1": "openai_chat", "claude-1": "anthropic_messages"}
SLOW = {
    "echo": """
[[backends]]
name = "slow"
kind = "echo"
delay_ms = 100
""",
    "simulated": """
[[backends]]
name = "slow"
kind = "simulator"
models = ["simulated"]
token_ms = 100
min_tokens = 400
""",
}
pytestmark = pytest.mark.timeout(240)  # the first test may wait for the npm packages


class Leaver:
    """Makes calls through one SDK and leaves them; ``leave`` answers when, in seconds."""

    def __init__(self, sdk: str, request: pytest.FixtureRequest) -> None:
        self.family, _, self.language = sdk.partition("-")
        # Only the tests of JavaScript need Node.
        node: Node | None = (
            request.getfixturevalue("node") if self.language == "javascript" else None
        )
        self._node = node

    def leave(
        self, url: str, model: str, moment: str, *, upstream: Upstream | None = None, times: int = 1
    ) -> list[float]:
        """Leave ``times`` calls, each in mid-stream or while it waits at ``upstream``."""
        if self._node is not None:
            control = f"{upstream.url}/control" if upstream else None
            seen = self._node.run(
                self.family, "abort", url=url, model=model, text="go on " * 100, times=times,
                moment=moment, control=control,
            )  # fmt: skip
            return [at / 1e9 for at in seen["left"]]
        way = self._leave_stream if moment == "streaming" else self._leave_waiting
        left = []
        for _ in range(times):
            _wait_open(upstream, 0)
            left.append(way(url, model, upstream))
        return left

    def _leave_stream(self, url: str, model: str, upstream: Upstream | None) -> float:
        """Close the stream after its first words."""
        said: Any = [{"role": "user", "content": "go on " * 100}]
        if self.family == "openai":
            with OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
                chunks = client.chat.completions.create(model=model, messages=said, stream=True)
                next(e for e in chunks if e.choices and e.choices[0].delta.content)
                at = time.monotonic()
                chunks.close()
                return at
        with Anthropic(base_url=url, api_key="unused", max_retries=0) as claude:
            events = claude.messages.create(
                model=model, max_tokens=2000, messages=said, stream=True
            )
            next(e for e in events if e.type == "content_block_delta")
            at = time.monotonic()
            events.close()
            return at

    def _leave_waiting(self, url: str, model: str, upstream: Upstream | None) -> float:
        """Cancel the task that waits for an answer."""
        return asyncio.run(self._cancel_task(url, model, upstream))

    async def _cancel_task(self, url: str, model: str, upstream: Upstream | None) -> float:
        said: Any = [{"role": "user", "content": "hello"}]
        ask: Any
        if self.family == "openai":
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
            ask = client.chat.completions.create(model=model, messages=said)
        else:
            claude = AsyncAnthropic(base_url=url, api_key="unused", max_retries=0)
            ask = claude.messages.create(model=model, max_tokens=9, messages=said)
        asked = asyncio.ensure_future(ask)
        await asyncio.to_thread(_wait_open, upstream, 1)
        at = time.monotonic()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return at


def _wait_open(upstream: Upstream | None, number: int) -> None:
    if upstream is not None:
        wait_for(lambda: upstream.counters.open == number, 10, f"{number} calls at the upstream")


@pytest.fixture(params=SDKS)
def leaver(request: pytest.FixtureRequest) -> Leaver:
    """One SDK."""
    return Leaver(request.param, request)


def cancelled(gateway: Gateway) -> int:
    """Count the calls that ended because their client left."""
    text = gateway.metrics()
    lines = [line for line in text.splitlines() if line.startswith("tpo_calls_total{")]
    return sum(int(float(line.split()[-1])) for line in lines if '"cancelled"' in line)


def idle(gateway: Gateway) -> bool:
    """Whether no call is open on any shard."""
    return bool(gateway.ask("/health").json()["worker_pool"]["pending_requests"] == 0)


@pytest.mark.parametrize("model", BACKENDS)
@pytest.mark.parametrize("moment", ["waiting", "streaming"])
def test_abort_reaches_the_upstream_at_once(
    leaver: Leaver, scripted: tuple[Gateway, Upstream], model: str, moment: str
) -> None:
    """By the upstream's own log: the fastest of some within 50 ms."""
    gateway, upstream = scripted
    mode: Any = {"waiting": "hang", "streaming": "hang_body"}[moment]
    before, calls = cancelled(gateway), 0

    def aborted_s() -> float:
        nonlocal calls
        calls += TIMES
        upstream.queue(mode, TIMES, events=streamed(BACKENDS[model], REPLIES), cut_after=3)
        left = leaver.leave(gateway.url, model, moment, upstream=upstream, times=TIMES)
        wait_for(lambda: len(upstream.aborted_at) == calls, 5, "every call aborted at the upstream")
        aborted = list(upstream.aborted_at)[-TIMES:]
        took = [at - gone for at, gone in zip(aborted, left, strict=True)]
        print(f"aborted after {[round(t * 1e3, 1) for t in took]} ms")
        return min(took)

    quickest(aborted_s, 1, PROMPT_CANCEL_S)
    wait_for(lambda: upstream.counters.open == 0, 5, "nothing open")
    wait_for(lambda: cancelled(gateway) == before + calls, 5, "counted as cancelled")


@pytest.mark.parametrize("model", SLOW)
def test_abort_ends_a_backend_of_our_own(
    leaver: Leaver, start_gateway: StartGateway, model: str
) -> None:
    """A stream of many seconds is left after its first word: nothing of it stays open."""
    gateway = start_gateway(config=SLOW[model], workers=2)
    leaver.leave(gateway.url, model, "streaming", times=2)
    wait_for(lambda: idle(gateway), 5, "no open call")
    wait_for(lambda: cancelled(gateway) == 2, 5, "counted as cancelled")


@pytest.mark.engine
@pytest.mark.parametrize("sdk", SDKS)
def test_abort_frees_a_real_engine(
    sdk: str, request: pytest.FixtureRequest, engine_gateway: Gateway, mlx: MlxServer
) -> None:
    """The call ends as cancelled, and the engine answers the next one."""
    before = cancelled(engine_gateway)
    Leaver(sdk, request).leave(engine_gateway.url, "tiny", "streaming")
    wait_for(lambda: idle(engine_gateway), 5, "no open call")
    wait_for(lambda: cancelled(engine_gateway) == before + 1, 5, "counted as cancelled")
    with OpenAI(base_url=f"{engine_gateway.url}/v1", api_key="unused", timeout=30) as client:
        said: Any = [{"role": "user", "content": "still there?"}]
        reply = client.chat.completions.create(model="tiny", messages=said, max_tokens=4)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
