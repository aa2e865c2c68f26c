"""The JavaScript SDKs on a simulated provider, asked directly and through a gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.javascript import Node
from tests.support.simulated import front_of

MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-5"}
SDKS = tuple(MODELS)
pytestmark = pytest.mark.timeout(240)  # the first test may wait for the npm packages


@pytest.fixture(scope="module")
def front(simulator: Gateway, short_tmp: Path) -> Iterator[Gateway]:
    """A gateway in front of the simulator."""
    with front_of(simulator, short_tmp / "javascript-front") as gateway:
        yield gateway


@pytest.fixture(params=["direct", "gateway"])
def url(request: pytest.FixtureRequest, simulator: Gateway, front: Gateway) -> str:
    """The simulator's address, or that of the gateway in front of it."""
    return simulator.url if request.param == "direct" else front.url


@pytest.mark.parametrize("sdk", SDKS)
def test_stream_says_what_the_whole_answer_says(node: Node, url: str, sdk: str) -> None:
    """The same words, piece by piece, and a reason for the end."""
    asked: dict[str, Any] = {"url": url, "model": MODELS[sdk], "text": "Tell me about rivers"}
    whole = node.run(sdk, "chat", **asked)
    streamed = node.run(sdk, "stream", **asked)
    assert whole["text"]
    assert streamed["text"] == whole["text"]
    assert streamed["finish_reason"] == whole["finish_reason"]
    assert streamed["events"] > 5
    assert "error" not in streamed


@pytest.mark.parametrize("sdk", SDKS)
def test_models_are_those_of_the_provider(node: Node, url: str, sdk: str) -> None:
    """One by one too."""
    seen = node.run(sdk, "models", url=url, model=MODELS[sdk])
    assert seen["one"]["id"] == MODELS[sdk]


@pytest.mark.parametrize("sdk", SDKS)
def test_tools_are_called_by_the_sdks_own_loop(node: Node, url: str, sdk: str) -> None:
    """A call with arguments of the schema, its result, and an answer in words."""
    seen = node.run(sdk, "tools", url=url, model=MODELS[sdk], text="What is the weather in Rome?")
    (called,) = seen["called"]
    assert isinstance(called["city"], str)
    assert seen["roles"][0] == "user"
    assert seen["roles"][-1] == "assistant"
    assert len(seen["roles"]) == 4


def test_embeddings_are_decoded(node: Node, url: str) -> None:
    """Two vectors of the model's size: the SDK asks for base64 and reads it."""
    seen = node.run(
        "openai", "embeddings", url=url, model="text-embedding-3-small", input=["one", "two"]
    )
    assert seen["sizes"] == [1536, 1536]
    assert all(isinstance(number, float) for number in seen["first"])
    assert seen["usage"]["prompt_tokens"] > 0


def test_responses_are_made_kept_and_forgotten(node: Node, url: str) -> None:
    """Whole, streamed, fetched, continued, deleted."""
    seen = node.run("openai", "responses", url=url, model="gpt-4o", text="Tell me about rivers")
    assert seen["text"]
    assert seen["kept"] == seen["streamed"]["text"] == seen["text"]
    assert seen["streamed"]["types"][0] == "response.created"
    assert seen["streamed"]["types"][-1] == "response.completed"
    assert seen["next"] == "completed"
    assert seen["gone"] == 404


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(
    ("order", "kind", "status"),
    [
        ("400", "BadRequestError", 400),
        ("401", "AuthenticationError", 401),
        ("404", "NotFoundError", 404),
        ("422", "UnprocessableEntityError", 422),
        ("429", "RateLimitError", 429),
        ("500", "InternalServerError", 500),
    ],
)
def test_ordered_status_is_the_sdks_error(
    node: Node, simulator: Gateway, sdk: str, order: str, kind: str, status: int
) -> None:
    """Its class, with a request id."""
    error = node.run(
        sdk, "chat", url=simulator.url, model=MODELS[sdk], text="hi",
        headers={"x-sim-error": order},
    )["error"]  # fmt: skip
    assert (error["class"], error["status"]) == (kind, status)
    assert error["request_id"]


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("order", ["429; first=2; retry_after=0.05", "503; first=2; retry_after=0"])
def test_sdk_retries_until_it_is_answered(node: Node, url: str, sdk: str, order: str) -> None:
    """Two failures, then the answer, whichever worker each try meets."""
    asked: dict[str, Any] = {"url": url, "model": MODELS[sdk], "text": "hi"}
    assert "error" not in node.run(sdk, "chat", **asked, retries=2, headers={"x-sim-error": order})
    error = node.run(sdk, "chat", **asked, retries=1, headers={"x-sim-error": order})["error"]
    assert error["status"] in (429, 503, 529)


def test_spent_quota_is_not_tried_again(node: Node, simulator: Gateway, short_tmp: Path) -> None:
    """A 429 with ``x-should-retry: false``: the gateway in between is asked once."""
    # One worker has counted a call before it reads another request.
    with front_of(simulator, short_tmp / "javascript-counting", workers=1) as counting:
        for calls, sdk in enumerate(SDKS, 1):
            error = node.run(
                sdk, "chat", url=counting.url, model=MODELS[sdk], text="hi", retries=2,
                headers={"x-sim-error": "insufficient_quota"},
            )["error"]  # fmt: skip
            assert error["status"] == 429
            assert calls_of(counting) == calls


def calls_of(gateway: Gateway) -> int:
    """Count the calls that a gateway was asked for."""
    text = gateway.metrics()
    lines = [line for line in text.splitlines() if line.startswith("tpo_calls_total{")]
    return sum(int(float(line.split()[-1])) for line in lines)


@pytest.mark.parametrize("sdk", SDKS)
def test_error_in_mid_stream_is_raised(node: Node, url: str, sdk: str) -> None:
    """As a real provider's in-band error is, after the words before it."""
    seen = node.run(
        sdk, "stream", url=url, model=MODELS[sdk], text="Tell me about rivers",
        headers={"x-sim-fault": "error_after=3"},
    )  # fmt: skip
    assert seen["text"]
    assert seen["error"]["class"] in ("APIError", "InternalServerError", "OverloadedError")
    assert seen.get("final") is None
