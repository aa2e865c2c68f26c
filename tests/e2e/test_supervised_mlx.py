"""Our MLX engine with a real tiny model, started and kept by the host itself."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import require
from tests.support import tiny_model
from tests.support.gateway import Gateway
from tests.support.raw import RawClient
from tests.support.shards import render
from tests.support.wait import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
BAD = """
[[engines]]
name = "wrong"
kind = "mlx"
model = "{wrong}"
restart = "never"
[[engines]]
name = "missing"
kind = "mlx"
model = "{folder}/absent"
[[engines]]
name = "nogpu"
kind = "llama_cpp"
model = "{folder}/absent.gguf"
gpus = [77]
[[engines]]
name = "large"
kind = "mlx"
model = "{tiny}"
memory_limit_bytes = 4096
[[backends]]
name = "echo"
kind = "echo"
models = ["e"]
"""

THREAD_KILLER = """
import ctypes, signal, sys, threading

def kill(*_):
    for thread in threading.enumerate():
        if thread.name == "mlx":
            ended = ctypes.py_object(SystemExit)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ended)

if "hardware.mlx_engine" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, kill)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of our own making."""
    require(importlib.util.find_spec("mlx_lm") is not None, "mlx-lm")
    return tiny_model.build(tmp_path_factory.mktemp("models") / "tiny")


def row(gateway: Gateway, name: str) -> dict[str, Any]:
    """What ``status --json`` says of an engine."""
    found: list[dict[str, Any]] = gateway.status()["engines"]
    return next(row for row in found if row["engine"] == name)


def words_of(gateway: Gateway, name: str) -> str:
    """Why an engine does not serve."""
    return str(row(gateway, name)["last_words"] or "")


def ready(gateway: Gateway, name: str, but: int | None = None) -> dict[str, Any] | None:
    """Its row once it serves as another process than ``but``."""
    found = row(gateway, name)
    return found if found["state"] == "ready" and found["pid"] != but else None


def chat(gateway: Gateway, model: str, **more: Any) -> Any:
    """Ask for four tokens."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return gateway.ask("/v1/chat/completions", body | {"temperature": 0} | more)


def test_one_command_starts_the_engine_and_the_gateway(tiny: Path, tmp_path: Path) -> None:
    """``serve --backend mlx --model FOLDER``: answers, streams, is restarted, ends whole.

    Restarted also when only the thread of the model is gone, of which its open call learns.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(THREAD_KILLER)
    paths = filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH")))
    env = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0",
           "PYTHONPATH": os.pathsep.join(paths)}  # fmt: skip
    args = ("--backend", "mlx", "--model", str(tiny))
    with Gateway(tmp_path / "host", *args, workers=2, env=env, ready_s=90) as gateway:
        first = wait_for(partial(ready, gateway, "mlx"), 90, "the engine to load")
        asked = psutil.Process(first["pid"]).environ()
        assert asked["HF_HUB_OFFLINE"] == "1"  # the model is here: nobody looks elsewhere
        for name in ("tiny", str(tiny)):
            reply = chat(gateway, name)
            assert reply.status == 200, reply.body
            assert json.loads(reply.body)["usage"]["completion_tokens"] == 4
        streamed = chat(gateway, "tiny", stream=True, seed=7)
        assert streamed.body.rstrip().endswith(b"data: [DONE]")
        os.kill(first["pid"], signal.SIGKILL)
        again = wait_for(partial(ready, gateway, "mlx", first["pid"]), 90, "another engine")
        assert again["restarts"] == 1
        wait_for(lambda: chat(gateway, "tiny").status == 200, 30, "calls to be answered again")
        with RawClient(gateway.url, timeout_s=60) as client:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}],
                    "max_tokens": 1900, "ignore_eos": True, "stream": True}  # fmt: skip
            client.send(render(client.host, body, {}, "fast"))
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
            chunks = client.chunks()
            assert b"data: " in next(chunks)
            os.kill(again["pid"], signal.SIGUSR1)
            assert b'"error"' in b"".join(chunks)
        wait_for(lambda: "model's thread ended" in words_of(gateway, "mlx"), 30, "its last words")
        again = wait_for(partial(ready, gateway, "mlx", again["pid"]), 90, "a third engine")
        wait_for(lambda: chat(gateway, "tiny").status == 200, 30, "calls to be answered once more")
        family = psutil.Process(again["pid"]).parent()
        assert family is not None
        assert "engine-mlx | ready after" in gateway.stderr
    assert not psutil.pid_exists(again["pid"])
    assert not family.is_running()


def test_what_is_wrong_with_an_engine_is_said_in_one_line(tiny: Path, tmp_path: Path) -> None:
    """Architecture, model, GPU, memory: each is a line, and the other backends serve."""
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny, wrong)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"model_type": "no_such_arch"}))
    text = BAD.format(wrong=wrong, folder=tmp_path, tiny=tiny)
    env = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    with Gateway(tmp_path / "host", config=text, env=env, ready_s=90) as gateway:
        expected = {
            "wrong": r"no architecture 'no_such_arch'",
            "missing": r"absent: no such file or folder",
            "nogpu": r"no GPU 77 here|llama-server is not in PATH",
            "large": r"over memory_limit_bytes, 0 MiB",
        }
        for name, pattern in expected.items():
            words = wait_for(partial(words_of, gateway, name), 90, f"{name}'s words")
            assert re.search(pattern, words), words
        wait_for(lambda: row(gateway, "wrong")["state"] == "failed", 30, "it to be given up")
        body = {"model": "e", "messages": [{"role": "user", "content": "hi"}]}
        assert gateway.ask("/v1/chat/completions", body).status == 200
        assert {"engine wrong", "engine missing"} <= set(gateway.status()["degraded"])
