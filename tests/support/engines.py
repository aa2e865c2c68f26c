"""Real model servers beside ``mlx_lm``, for whoever has them installed.

``llama-server`` serves the GGUF file that ``TPO_LLAMA_MODEL`` names, ``vllm`` the folder that
``TPO_VLLM_MODEL`` names.  Neither is needed for anything else here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .wait import free_port, wait_for

MODEL = "served"
START_S = 300.0
"""vLLM compiles for its first start."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A model server that can be started here."""

    program: str
    model: str
    vllm: bool

    def command(self, port: int) -> list[str]:
        """The command line; the model is called ``served``."""
        where = ["--host", "127.0.0.1", "--port", str(port)]
        if self.vllm:
            named = ["--served-model-name", MODEL, "--max-model-len", "1024"]
            return [self.program, "serve", self.model, *named, *where]
        return [self.program, "-m", self.model, "--alias", MODEL, "-c", "1024", *where]


def find(kind: str) -> Installed | str:
    """Find ``llama_cpp`` or ``vllm``; a string says what is missing."""
    vllm = kind == "vllm"
    name, variable = ("vllm", "TPO_VLLM_MODEL") if vllm else ("llama-server", "TPO_LLAMA_MODEL")
    program, model = shutil.which(name), os.environ.get(variable, "")
    if program is None:
        return f"{name} is not installed here"
    if not Path(model).exists() or not model:
        return f"{variable} names no model for {name}"
    return Installed(program, model, vllm)


@contextmanager
def serving(engine: Installed, log: Path) -> Iterator[str]:
    """Run a server until the block ends; answers its URL."""
    port = free_port()
    with log.open("ab") as out:
        child = subprocess.Popen(
            engine.command(port), stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: child.poll() is not None or _healthy(url), START_S, "a model server")
        assert child.poll() is None, log.read_text(errors="replace")[-2000:]
        yield url
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(20)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
