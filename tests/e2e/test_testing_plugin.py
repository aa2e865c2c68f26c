"""The pytest plugin: the page's example runs as it stands there, in a session of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway import ROOT, Gateway
from tests.support.raw import chat
from tpo_mp.testing import LlmSimulator

PAGE = ROOT / "docs" / "simulator.md"
CHAT = "/v1/chat/completions"


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a test file under the plugin."""
    (folder / "test_it.py").write_text(text)
    plugins = ("tpo_mp.testing", "no:cacheprovider", "no:randomly", "no:xdist")
    command = [sys.executable, "-m", "pytest", "-q", *(f"-p{name}" for name in plugins)]
    command.append(str(folder))
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, cwd=ROOT, check=False
    )


def test_the_example_of_the_page_passes(tmp_path: Path) -> None:
    """Failures, rules, tool calls, strict and the journal, with OpenAI's own client."""
    (example,) = re.findall(r"```python\n(import openai.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "pytest.ini").write_text("[pytest]\nllm_simulator_args = --seed 3\n")
    done = run(tmp_path, example)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_simulator_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The test errs with the reason, and does not hang."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nllm_simulator_args = --rules nowhere.yaml\n")
    done = run(tmp_path, "def test_it(llm_simulator): ...\n")
    assert done.returncode == 1
    assert "nowhere.yaml: No such file" in done.stdout


@pytest.fixture
def told(simulator: Gateway) -> LlmSimulator:
    """A shared two-worker simulator, as the plugin sees one."""
    found = LlmSimulator(simulator.url)
    found.reset()
    return found


def test_what_is_told_holds_on_every_worker_and_until_the_reset(
    simulator: Gateway, told: LlmSimulator
) -> None:
    """Two failures, whoever takes them; then the newest rule; then none."""
    model = "gpt-4o-mini"
    asked = chat("hello", model=model)
    try:
        told.reply_with("first", model=model)
        told.reply_with("second", model=model)
        told.fail_next(2, 503, model=model)
        replies = [simulator.ask(CHAT, asked) for _ in range(4)]
        assert [reply.status for reply in replies] == [503, 503, 200, 200]
        assert {r.json()["choices"][0]["message"]["content"] for r in replies[2:]} == {"second"}
        seen = [entry["status"] for entry in told.journal if entry["model"] == model]
        assert seen == [503, 503, 200, 200]
        with pytest.raises(ValueError, match=r"rules\[1\].match.regex"):
            told.reply_with("x", regex="(")
        with pytest.raises(ValueError, match="colour"):
            told.configure(colour=1)
    finally:
        told.reset()
    again = simulator.ask(CHAT, asked).json()["choices"][0]["message"]["content"]
    assert again not in ("first", "second")
    assert told.ask("GET", "/admin/config")["changed"] == ["journal"]
