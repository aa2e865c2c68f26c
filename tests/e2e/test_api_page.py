"""Every line of ``docs/api.md`` does what its sentence says, on a running gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.api import endpoints
from tests.support.gateway import ROOT, Gateway
from tests.support.upstream import Upstream
from tests.support.wait import wait_for
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.pipeline.curl import BASE, curl_line

PAGE = (ROOT / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SETTERS = dict(line.split("=", 1) for line in BLOCKS[0].splitlines())
LINES = [block.strip() for block in BLOCKS[1:]]
BY_LINE = {curl_line(e): e for e in endpoints() if not e.alias_of}
VECTORS = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": i, "embedding": [0.5, -0.5]} for i in range(2)],
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
}
CONFIG = """
[stages.token_budget.session]

[stages.rag]

[[backends]]
name = "echo"
kind = "echo"

[[backends]]
name = "slow"
kind = "echo"
models = ["slow"]
delay_ms = 60000

[[backends]]
name = "embeds"
kind = "openai"
base_url = "{embeds}"
models = ["text-embedding-*"]

[[backends]]
name = "counts"
kind = "anthropic"
base_url = "{counts}"
models = ["claude-*"]

[[backends]]
name = "fails"
kind = "openai"
base_url = "{fails}"
models = ["fails"]
"""
LETTERS = 8


@pytest.fixture(scope="module")
def gateway(short_tmp: Path) -> Iterator[Gateway]:
    """Two shards over echo, a backend for what echo cannot do, and dead letters to ask again."""
    with Upstream() as embeds, Upstream() as counts, Upstream() as fails:
        embeds.play(reply=VECTORS)
        counts.play(reply={"input_tokens": 9})
        fails.play("status", status=500)
        config = CONFIG.format(embeds=embeds.base_url, counts=counts.base_url, fails=fails.base_url)
        with Gateway(short_tmp / "page", config=config, workers=2) as running:
            for _ in range(LETTERS):  # some lines use one up
                refused = running.ask("/v1/prompt", {"prompt": "never answered", "model": "fails"})
                assert refused.status >= 500
            wait_for(lambda: running.ask("/api/v1/dlq").json()["count"] == LETTERS, 10, "letters")
            fails.play()
            yield running


def run(gateway: Gateway, line: str) -> tuple[int, str]:
    """Run a line after the setters it needs; status and answer."""
    require(shutil.which("curl") is not None, "curl")
    needed = [f"{name}={text}" for name, text in SETTERS.items() if f"${name}" in line]
    asking = line.replace("curl ", r"curl --max-time 20 -w '\n%{http_code}' ", 1)
    script = "\n".join([*needed, asking]).replace(BASE, gateway.url)
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    answer, _, status = done.stdout.rpartition("\n")
    assert status.isdigit(), done
    return int(status), answer


def check(endpoint: Endpoint, status: int, answer: str) -> None:
    """An answer is one the endpoint says it has; a good one where it has any."""
    wanted = {o.status for o in endpoint.outcomes if o.status < 400} or set(endpoint.errors)
    assert status in wanted, answer
    assert answer.strip()


@pytest.mark.parametrize("line", LINES)
def test_line_of_the_page_answers(gateway: Gateway, line: str) -> None:
    """Each is pasted into a shell, with the lines that set its variables."""
    check(BY_LINE[line], *run(gateway, line))
    if line.endswith("/trip"):  # the lines after it ask that backend
        assert run(gateway, line.removesuffix("trip") + "reset")[0] == 200
    if line.endswith("/drain"):
        assert run(gateway, line.removesuffix("drain") + "undrain")[0] == 200


@pytest.mark.parametrize(
    "endpoint", [e for e in endpoints() if e.alias_of], ids=lambda e: f"{e.method} {e.template}"
)
def test_alias_answers_what_its_route_does(gateway: Gateway, endpoint: Endpoint) -> None:
    """Status, and body but for what changes from call to call."""
    canonical = next(
        e for e in endpoints() if (e.method, e.template) == (endpoint.method, endpoint.alias_of)
    )

    def shape(asked: Endpoint) -> tuple[int, list[str]]:
        status, answer = run(gateway, curl_line(asked))
        check(asked, status, answer)
        return status, re.findall(r'"(\w+)":', answer)

    # Each line asks for something new, which one may find finished and the other not yet.
    wait_for(lambda: shape(endpoint) == shape(canonical), 30, "one answer to both")


def test_every_line_is_of_a_route() -> None:
    """The page has them all and no other."""
    assert sorted(LINES) == sorted(BY_LINE)
    assert len(LINES) > 25
