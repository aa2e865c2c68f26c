"""Rules of a running simulator: every dialect, exact counts over two workers, strict refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import ROOT, Gateway
from tests.support.raw import chat
from tests.support.shards import connect_to

RULES = """
rules:
  - match: {contains: weather, turn: 1, model: "gpt-4*"}
    reply: {text: Let me look., tool_calls: [{name: get_weather, arguments: {city: Rome}}]}
  - match: {regex: "^fail"}
    reply: {error: "503; retry_after=0"}
    times: 7
  - match: {contains: cut}
    reply: {text: one two three four, fault: error_after=2}
  - match: {regex: "^(fail|plain|where)"}
    reply: {text: plain words}
"""


@pytest.fixture(scope="module")
def ruled(short_tmp: Path) -> Iterator[Gateway]:
    """A strict two-worker simulator with rules."""
    # The module may be taken up twice by one test process.
    folder = Path(tempfile.mkdtemp(dir=short_tmp))
    (folder / "rules.yaml").write_text(RULES)
    args = ("--rules", str(folder / "rules.yaml"), "--strict")
    with Gateway(folder, *args, workers=2, verb="simulate") as gateway:
        yield gateway


ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "plain"}]}


def test_a_rule_answers_in_every_dialect(ruled: Gateway) -> None:
    """The same words, each in its own shape."""
    told = [
        ruled.ask("/v1/chat/completions", ASKED | {"model": "gpt-4o"}),
        ruled.ask("/v1/messages", ASKED | {"model": "claude-haiku-4-5", "max_tokens": 9}),
        ruled.ask("/v1/responses", {"model": "gpt-4o", "input": "plain"}),
        ruled.ask("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "plain"}),
        ruled.ask("/v1beta/models/gemini-2.5-flash:generateContent",
                  {"contents": [{"parts": [{"text": "plain"}]}]}),
    ]  # fmt: skip
    assert [reply.status for reply in told] == [200] * 5
    assert all(b"plain words" in reply.body for reply in told)


def test_a_rule_calls_tools_nobody_offered(ruled: Gateway) -> None:
    """With words before the call, as models do."""
    reply = ruled.ask("/v1/chat/completions", chat("the weather?", model="gpt-4o")).json()
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


def test_a_rule_fails_exactly_as_often_as_it_says(ruled: Gateway) -> None:
    """Over both workers, at once; then the next rule has its turn."""
    path, asked = "/v1/chat/completions", chat("fail please", model="gpt-4o")
    with ExitStack() as opened, ThreadPoolExecutor(4) as pool:
        clients = [
            opened.enter_context(connect_to(ruled.url, n % 2, model="gpt-4o")) for n in range(4)
        ]
        five = pool.map(lambda client: [client.post_json(path, asked) for _ in range(5)], clients)
        replies = list(chain.from_iterable(five))
    assert sorted(reply.status for reply in replies) == [200] * 13 + [503] * 7
    assert len({reply.headers["x-tpo-shard"] for reply in replies}) == 2


def test_a_rule_has_a_fault(ruled: Gateway) -> None:
    """Two tokens, then the error event."""
    reply = ruled.ask("/v1/chat/completions", chat("cut", model="gpt-4o", stream=True))
    assert reply.body.count(b'"content":"') - reply.body.count(b'"content":""') == 2
    assert b'"error"' in reply.body


def test_strict_refuses_what_no_rule_matches(ruled: Gateway) -> None:
    """In the dialect, naming the request."""
    reply = ruled.ask("/v1/chat/completions", chat("something else", model="gpt-4o"))
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (400, "no_rule_matched")
    assert "'something else'" in error["message"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [{match: {regex: '('}}]", "rules[0].match.regex"),
        ("rules: [{replay: {}}]", "replay"),
        ("- 1", "expected a table"),
        ("other: 1", "a list named rules"),
    ],
)
def test_bad_rules_are_refused_with_their_place(tmp_path: Path, text: str, said: str) -> None:
    """Before anything is served."""
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    command = [sys.executable, "-m", "tpo_mp", "simulate", "--port", "0", "--rules", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
