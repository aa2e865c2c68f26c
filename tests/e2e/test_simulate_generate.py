"""``tpo-mp simulate generate``: without a server, what the server says."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.gateway import ROOT, Gateway
from tests.support.raw import ask

CONFIG = """
[simulator]
seed = 3
strategy = "markov"

[[simulator.rules]]
match = { contains = "weather" }
reply = { text = "It is sunny." }

[[simulator.rules]]
match = { contains = "too much" }
reply = { error = "429" }
"""
MESSAGE = {"role": "user", "content": "Tell me about rivers"}
SAYING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "openai": ("gpt-4o", "/v1/chat/completions",
               {"model": "gpt-4o", "messages": [MESSAGE], "max_tokens": 40}),
    "anthropic": ("claude-opus-5", "/v1/messages",
                  {"model": "claude-opus-5", "messages": [MESSAGE], "max_tokens": 40}),
    "google": ("gemini-2.0-flash", "/v1beta/models/gemini-2.0-flash:generateContent",
               {"contents": [{"role": "user", "parts": [{"text": "Tell me about rivers"}]}],
                "generationConfig": {"maxOutputTokens": 40}}),
}  # fmt: skip
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages",
         "google": "/v1beta/models/gemini-2.5-flash:generateContent"}  # fmt: skip


@pytest.fixture(scope="module")
def provider(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator of two workers."""
    with Gateway(short_tmp / "gen", config=CONFIG, workers=2, verb="simulate") as gateway:
        yield gateway


def generate(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """Run it; exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "simulate", "generate", *arguments],
        input=stdin, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def told(body: Any) -> str:
    """The words of an answer in any family."""
    if "choices" in body:
        return str(body["choices"][0]["message"]["content"])
    parts = body.get("content") or body["candidates"][0]["content"]["parts"]
    return "".join(str(part["text"]) for part in parts)


@pytest.mark.parametrize("family", list(SAYING))
def test_words_are_those_of_the_server(provider: Gateway, family: str) -> None:
    """To the same request, by the same file, as text and whole."""
    model, path, body = SAYING[family]
    said = told(ask(provider.url, path, body).json())
    assert len(said) > 20
    options = ("chat", "-c", str(provider.config_path), "-p", family, "-m", model,
               "--max-tokens", "40", "-u", MESSAGE["content"])  # fmt: skip
    assert generate(*options)[:2] == (0, f"{said}\n")
    whole = json.loads(generate(*options, "-f", "json")[1])
    assert told(whole) == said
    _, other, _ = generate(*options, "--seed", "4")
    assert other != f"{said}\n"


def test_a_stream_is_the_server_s_events(provider: Gateway) -> None:
    """The same pieces in the same order, and its end; what is asked may come from stdin."""
    body = SAYING["openai"][2] | {"stream": True, "stream_options": {"include_usage": True}}
    events = ask(provider.url, "/v1/chat/completions", body).events
    code, printed, _ = generate(
        "chat", "-c", str(provider.config_path), "-m", "gpt-4o", "--max-tokens", "40",
        "-f", "stream", stdin=MESSAGE["content"],
    )  # fmt: skip
    assert code == 0
    own = [line.removeprefix("data: ") for line in printed.splitlines() if line]
    assert own[-1] == events[-1].decode() == "[DONE]"
    pieces = [[json.loads(event)["choices"] for event in found[:-1]] for found in (own, events)]
    assert len(pieces[0]) > 10
    assert pieces[0] == pieces[1]


def test_rules_of_the_file_speak_and_refuse(provider: Gateway) -> None:
    """A refusal is one line and exit code 1."""
    config = str(provider.config_path)
    assert generate("chat", "-c", config, "-u", "What weather?")[1] == "It is sunny.\n"
    code, out, err = generate("chat", "-c", config, "-u", "That is too much")
    assert (code, out, err) == (1, "", "tpo-mp: a rule refuses this request: 429\n")


def test_vectors_are_those_of_the_server_in_every_form(provider: Gateway) -> None:
    """A body, numbers, or packed floats, of each text."""
    model = "text-embedding-3-small"
    body = {"model": model, "input": ["a", "b"], "dimensions": 8}
    served = [row["embedding"] for row in ask(provider.url, "/v1/embeddings", body).json()["data"]]
    options = ("embedding", "-c", str(provider.config_path), "-m", model, "-d", "8",
               "-t", "a", "-t", "b", "-f")  # fmt: skip
    whole = json.loads(generate(*options, "json")[1])
    assert [row["embedding"] for row in whole["data"]] == served
    lines = generate(*options, "array")[1].splitlines()
    assert [json.loads(line) for line in lines] == served
    packed = generate(*options, "base64")[1].splitlines()
    floats = [struct.unpack("<8f", base64.b64decode(line)) for line in packed]
    assert floats == [pytest.approx(row) for row in served]
    code, _, err = generate("embedding", "-t", "a", "-d", "8")
    assert (code, err.count("\n")) == (1, 1)
    assert "dimensions" in err


@pytest.mark.parametrize("family", list(PATHS))
def test_requests_are_answered(provider: Gateway, tmp_path: Path, family: str) -> None:
    """Each line is a body that the family's route takes; a seed gives the same file."""
    path = tmp_path / "requests.jsonl"
    assert generate("requests", "-c", "12", "-p", family, "--seed", "5", "-o", str(path))[0] == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 12
    for line in lines:
        assert ask(provider.url, PATHS[family], json.loads(line)).status == 200, line
    again = generate("requests", "-c", "12", "-p", family, "--seed", "5")[1]
    assert again.splitlines() == lines


def test_a_config_is_printed_in_every_form() -> None:
    """The same settings; a full one has the defaults too."""
    _, yaml_text, _ = generate("config", "-f", "yaml", "-p", "production")
    _, json_text, _ = generate("config", "-f", "json", "-p", "production")
    assert yaml.safe_load(yaml_text) == json.loads(json_text)
    full = json.loads(generate("config", "-f", "json", "--full", "-p", "minimal")[1])
    assert full["simulator"]["token_ms"] == 20
    assert full["simulator"]["strategy"] == "template"
