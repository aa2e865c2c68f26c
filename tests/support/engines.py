"""Real model servers, each with a tiny model that is made here, for whoever has them installed.

``mlx_lm`` comes with the development requirements.  ``llama-server`` and ``vllm`` are looked for in
``TPO_LLAMA_SERVER`` and ``TPO_VLLM``, then in the path; neither is needed for anything else here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from . import tiny_gguf, tiny_model
from .wait import free_port, wait_for

MODEL = "served"
START_S = 300.0
"""vLLM compiles for its first start."""
LONGEST: Final = 16_384
"""Tokens that the models say they were made for."""
_PROGRAMS: Final = {"llama_cpp": ("llama-server", "TPO_LLAMA_SERVER"), "vllm": ("vllm", "TPO_VLLM")}


@dataclass(frozen=True, slots=True)
class Installed:
    """An engine that can be started here, and what its metrics are called.

    ``running``: sequences it computes; ``steps``: steps it took, or tokens it made, so far.
    """

    kind: str
    program: str
    running: str
    steps: str
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path in which its program is the first to be found."""
        return os.pathsep.join([str(Path(self.program).parent), os.environ.get("PATH", "")])

    def model(self, folder: Path) -> Path:
        """Make its model in ``folder``."""
        if self.kind == "llama_cpp":
            return tiny_gguf.build(folder)
        # vLLM's kernels for CPUs want heads of 32 at least.
        wide = {"hidden_size": 128, "head_dim": 32} if self.kind == "vllm" else {}
        return tiny_model.build(folder, max_position_embeddings=LONGEST, **wide)

    def args(self, context: int) -> tuple[str, ...]:
        """Arguments for two sequences at a time of ``context`` tokens each."""
        if self.kind == "mlx":
            return "--max-context", str(context)
        if self.kind == "llama_cpp":
            return "-c", str(2 * context), "-np", "2", "--no-kv-unified"
        return (
            "--max-model-len", str(context), "--max-num-seqs", "4", "--enforce-eager",
            "--dtype", "bfloat16", "--enable-prompt-tokens-details",
        )  # fmt: skip

    def command(self, model: Path, port: int) -> list[str]:
        """The command line without a host; the model is called ``served``."""
        where = ["--host", "127.0.0.1", "--port", str(port), *self.args(1024)]
        if self.kind == "vllm":
            return [self.program, "serve", str(model), "--served-model-name", MODEL, *where]
        return [self.program, "-m", str(model), "--alias", MODEL, *where]


def find(kind: str) -> Installed | str:
    """Find ``mlx``, ``llama_cpp`` or ``vllm``; a string says what is missing."""
    if kind == "mlx":
        if importlib.util.find_spec("mlx_lm") is None:
            return "mlx-lm is not installed here"
        return Installed(kind, "python", "tpo_mlx_running", "tpo_mlx_steps")
    name, variable = _PROGRAMS[kind]
    program = shutil.which(os.environ.get(variable, "") or name)
    if program is None:
        return f"{name} is not installed here"
    if kind == "llama_cpp":
        return Installed(kind, program, "llamacpp:requests_processing", "llamacpp:n_decode_total")
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return Installed(
        kind, program, "vllm:num_requests_running", "vllm:generation_tokens_total", env
    )


@contextmanager
def serving(engine: Installed, folder: Path) -> Iterator[str]:
    """Run a server until the block ends; answers its URL."""
    port, log = free_port(), folder / "log"
    model = engine.model(folder / "model")
    with log.open("ab") as out:
        child = subprocess.Popen(
            engine.command(model, port), stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            env={**os.environ, **engine.env, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: child.poll() is not None or _healthy(url), START_S, "a model server")
        assert child.poll() is None, log.read_text(errors="replace")[-2000:]
        yield url
    finally:
        child.terminate()
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(60)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
