"""Every script in ``scripts/examples`` runs against a gateway and prints what it promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import StartGateway
from tests.support.gateway import ROOT, Gateway
from tests.support.toml import ECHO, backend
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

FOLDER = ROOT / "scripts/examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
PROMISES: dict[str, tuple[list[str], str]] = {
    "anthropic_worker": (
        ["--model", "echo"],
        r"whole: Say this in one breath\.\nusage: .*\nstream: And \|this \|word \|by \|word\.\|",
    ),
    "custom_worker": ([], r"answer: desserts stressed reward\nbackend: local status: 200"),
    "high_impact_demo": (
        ["--streams", "40"],
        r"40 streams in .* per second\nshard 0: \d+\nshard 1: \d+",
    ),
    "metrics_demo": (
        [],
        r"refused with 404\n(.*\n)*orchestrator_requests_total\{.*\}  \+\d+",
    ),
    "multi_worker": (
        [],
        r"(session-\d+ -> shard [01]\n){12}shard 0 holds \d+ sessions\nshard 1 holds \d+ sessions",
    ),
    "openai_worker": (
        ["--model", "echo"],
        r"whole: Say this in one breath\.\nusage: .*\nstream: And \|this \|word \|by \|word\.\|",
    ),
    "rest_api": (
        [],
        r"at once: answer me now .*\naccepted: \S+ \w+\nlater: answer me later completed",
    ),
    "sse_stream": (
        ["--prompt", "one two three"],
        r"start: \S+ \ntoken: one \ntoken: two \ntoken: three\ndone: \S+ stop",
    ),
    "translation_demo": (
        [],
        r"chat: (the same words for all)\ncompletions: \1\nresponses: \1\nmessages: \1",
    ),
    "web_api_demo": (
        [],
        r"tpo-mp .* routes\nhealth 200 .* 2\nmodels echo\nchat 200 hello there\nrefusal 400 tempe",
    ),
    "websocket_api": (
        ["--requests", "3"],
        r"(done [123] of 3: question-[123], \d tokens\n){3}(question-([123]): this is .*\3\n){3}",
    ),
}
"""Arguments and output of those that need nothing but a gateway."""


def run(name: str, *arguments: str) -> str:
    """Run one example to its good end and answer what it printed."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PROMISES)
def test_example_does_what_it_says(echo_gateway: Gateway, name: str) -> None:
    """With two shards and the echo backend."""
    arguments, promised = PROMISES[name]
    printed = run(name, "--url", echo_gateway.url, *arguments)
    assert re.fullmatch(f"{promised}.*", printed, re.DOTALL), printed


def test_custom_worker_needs_no_gateway() -> None:
    """Without ``--url`` it answers by itself."""
    assert "answer: desserts stressed reward"[::-1] not in (printed := run("custom_worker"))
    assert "answer: desserts stressed reward" in printed


def test_dead_letters_are_shown(start_gateway: StartGateway, upstream: Upstream) -> None:
    """An empty list, then a failed call with the words it was asked."""
    gateway = start_gateway(config=ECHO + backend("up", upstream.base_url), workers=2)
    assert run("dlq_inspection", "--url", gateway.url) == "0 dead letters\n"
    upstream.play("short")
    asked = gateway.ask("/api/v1/infer", {"prompt": "doomed words", "model": "up"}).json()
    call_id = asked["request_id"]
    wait_for(lambda: gateway.ask(f"/api/v1/dlq/{call_id}").status == 200, 10, "the dead letter")
    printed = run("dlq_inspection", "--url", gateway.url)
    assert printed.startswith(f"{call_id} cut_off ")
    assert "1 dead letters" in printed
    assert "doomed words" in printed


def test_config_is_reloaded_while_it_runs(start_gateway: StartGateway) -> None:
    """The new model is there, the broken file is refused, and in the end all is as before."""
    gateway = start_gateway(config=ECHO, workers=2)
    assert gateway.config_path is not None
    before = gateway.config_path.read_text()
    printed = run(
        "config_hot_reload", "--url", gateway.url,
        "--config", str(gateway.config_path), "--state-dir", str(gateway.state_dir),
    )  # fmt: skip
    said = re.fullmatch(
        r"before: echo\nreloaded\nnow: echo hot-model\nrefused:\n(.*)now: echo hot-model\n"
        r"put back: reloaded echo\n",
        printed,
        re.DOTALL,
    )
    assert said, printed
    assert "no-such-kind" in said[1]
    assert gateway.config_path.read_text() == before


def test_every_example_is_run_here() -> None:
    """None is left out, none is missing, and the folder's README names all."""
    special = {"dlq_inspection", "config_hot_reload"}
    assert {path.stem for path in SCRIPTS} == set(PROMISES) | special
    table = (FOLDER / "README.md").read_text()
    listed = re.findall(r"^\| `(\w+)\.py` \| (.+) \|$", table, re.MULTILINE)
    assert dict(listed) == {path.stem: about(path) for path in SCRIPTS}


def about(path: Path) -> str:
    """The first sentence of a script."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].rstrip(".")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_example_is_short_and_explains_itself(path: Path) -> None:
    """Under sixty lines; ``--help`` begins with what it shows and knows ``--url``."""
    assert len(path.read_text().splitlines()) < 60
    helped = run(path.stem, "--help")
    assert "--url" in helped
    assert " ".join(about(path).split()) in " ".join(helped.split())
