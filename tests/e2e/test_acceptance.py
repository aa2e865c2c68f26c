"""``scripts/acceptance.py`` before what it should accept, and before what it should not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.gateway import ROOT, Gateway
from tests.support.upstream import Upstream
from tests.support.wait import free_port

NAMES = ["health", "root", "models", "chat", "streaming", "auth", "rate limit", "load balancing",
         "performance"]  # fmt: skip
# The machine may be busy with other tests: what is tested here is the script.
CALM = ("--p99-ms", "10000")


def accept(url: str, *arguments: str) -> tuple[int, list[tuple[str, str, str]], str]:
    """Run it; answer exit code, the lines of the tests and the last line."""
    done = subprocess.run(
        [sys.executable, "scripts/acceptance.py", "--url", url, *arguments],
        capture_output=True, text=True, timeout=100, check=False, cwd=ROOT,
    )  # fmt: skip
    assert not done.stderr
    *lines, last = done.stdout.splitlines()
    found = []
    for line in lines:
        parsed = re.fullmatch(r"(PASS|FAIL)  (\w[\w ]*?) +\d+\.\d{3} s(?:  (.+))?", line)
        assert parsed, line
        found.append((parsed[1], parsed[2], parsed[3] or ""))
    assert [name for _, name, _ in found] == NAMES
    return done.returncode, found, last


def test_gateway_is_accepted(echo_gateway: Gateway) -> None:
    """Nine of nine; without ``--verbose`` a line has nothing but name and seconds."""
    code, lines, last = accept(echo_gateway.url, *CALM)
    assert [word for word, _, _ in lines] == ["PASS"] * 9, lines
    assert not any(said for _, _, said in lines)
    assert last == "Tests Passed: 9/9 (100.0%)"
    assert code == 0


def test_verbose_says_what_was_seen(echo_gateway: Gateway) -> None:
    """Each test has a word to add; what is off is called off."""
    _, lines, _ = accept(echo_gateway.url, "--verbose", *CALM)
    said = {name: told for _, name, told in lines}
    assert all(said.values())
    assert "2 shards" in said["health"]
    assert "say hello" in said["chat"]
    assert said["auth"] == "off: no key and any key are accepted"
    assert said["rate limit"] == "no limit met in 50 requests"
    assert re.fullmatch(r"shard 0: \d+, shard 1: \d+", said["load balancing"])


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_gateway_before_a_real_engine_is_accepted(engine_gateway: Gateway) -> None:
    """A model that answers noise still answers."""
    code, lines, last = accept(engine_gateway.url, "--verbose", "--model", "tiny", *CALM)
    assert (code, last) == (0, "Tests Passed: 9/9 (100.0%)"), lines


def test_what_is_expected_and_not_there_fails(echo_gateway: Gateway) -> None:
    """A key and a limit that the gateway does not have, and a bound that nothing meets."""
    code, lines, last = accept(
        echo_gateway.url, "--api-key", "sk-0123456789abcdef", "--limited", "--p99-ms", "0"
    )
    failed = {name: said for word, name, said in lines if word == "FAIL"}
    assert set(failed) == {"auth", "rate limit", "performance"}
    assert failed["auth"].startswith("401 wanted, got 200")
    assert last == "Tests Passed: 6/9 (66.7%)"
    assert code == 1


def test_other_servers_are_not_accepted(upstream: Upstream) -> None:
    """One that answers chats but is no gateway, and none at all: no traceback, exit code 1."""
    code, lines, last = accept(upstream.url, *CALM)
    failed = {name for word, name, _ in lines if word == "FAIL"}
    assert {"health", "root", "load balancing"} <= failed
    assert code == 1
    code, lines, last = accept(f"http://127.0.0.1:{free_port()}")
    assert all("no answer" in said for _, _, said in lines)
    assert (code, last) == (1, "Tests Passed: 0/9 (0.0%)")
