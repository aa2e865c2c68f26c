"""How the model servers we know are started: MLX, llama.cpp and vLLM; see ``tpo_mp.engines``.

Each builder looks first at what would make the start fail and says it in one line: a package or a
program that is not installed, a model that is not there, no such GPU, not enough memory.  What only
the engine itself can know (an architecture it has no code for) its last line tells.

Invariants: nothing is imported of an engine's package, which may take seconds and a GPU; a model
that is whole in the local cache is served without a look at the network.
Known weakness: the memory a model needs is taken to be the size of its weights; what it needs for
its context comes on top.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psutil

from tpo_mp.config.engines import (
    HOST,
    EngineCommand,
    EngineKind,
    EngineRefused,
    EngineSection,
)
from tpo_mp.supervisor import memory_room

from . import gpus

WEIGHTS: Final = (".safetensors", ".gguf", ".bin", ".npz", ".pt")
_REPO: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_MIB: Final = 1 << 20
_LLAMA_SERVER: Final = "llama-server"
_OWN_CONTEXTS: Final = ("-np", "--parallel")
_ONE_CONTEXT: Final = ("-kvu", "--kv-unified")
_INTERRUPT: Final = "--interrupt_requests"
_SPLITS: Final = (
    "--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp",
    "--data-parallel-size", "-dp",
)  # fmt: skip
_NO: Final = ("0", "off", "f", "false", "n", "no")


def mlx(engine: EngineSection, cpus: Sequence[int]) -> EngineCommand:
    """``hardware.mlx_engine``, on Metal, CUDA or the CPU as the installed build has it."""
    _needs_package("mlx_lm", "mlx-lm", "pip install 'tpo-mp[mlx]'")
    if sys.platform == "linux":
        _needs_gpus(engine)
    model, env = _model(engine)
    _needs_memory(engine, model)
    argv = [sys.executable, "-m", "hardware.mlx_engine", "--model", model]
    argv += ["--served-model-name", served(engine), "--host", HOST, "--port", "{port}"]
    return EngineCommand(tuple(argv), env | _threads(cpus), rings=True)


def llama_cpp(engine: EngineSection, cpus: Sequence[int]) -> EngineCommand:
    """``llama-server``, or the server of llama-cpp-python where only that is installed."""
    program = shutil.which(_LLAMA_SERVER)
    if program is None and find_spec("llama_cpp") is None:
        raise EngineRefused("llama-server is not in PATH, nor is llama-cpp-python installed")
    _needs_gpus(engine)
    model, env = _model(engine, file=True)
    name = served(engine)
    threads = ["--threads", str(len(cpus))] if cpus else []
    if program is None:
        return _llama_cpp_python(engine, cpus, model, env)
    if Path(model).exists():
        _needs_memory(engine, model)
        argv = [program, "--model", model, "--alias", name, "--metrics"]
    else:
        argv = [program, "--hf-repo", model, "--alias", name, "--metrics"]
    return EngineCommand((*argv, "--host", HOST, "--port", "{port}", *threads), env)


def _llama_cpp_python(
    engine: EngineSection, cpus: Sequence[int], model: str, env: dict[str, str]
) -> EngineCommand:
    """Its server has one model behind one lock, and no page about its health."""
    if not Path(model).exists():
        raise EngineRefused(f"model {engine.model}: llama-cpp-python's server loads files only")
    _needs_memory(engine, model)
    given = dict(zip(engine.args, (*engine.args[1:], ""), strict=False))
    given |= dict(arg.split("=", 1) for arg in engine.args if "=" in arg)
    if given.get(_INTERRUPT, "false").lower() not in _NO:
        raise EngineRefused(
            f"{_INTERRUPT} must be false: else each call ends the one before it half said"
        )
    argv = [sys.executable, "-m", "llama_cpp.server", "--model", model]
    argv += ["--model_alias", served(engine), "--host", HOST, "--port", "{port}"]
    argv += ["--n_threads", str(len(cpus))] if cpus else []
    return EngineCommand((*argv, _INTERRUPT, "false"), env, health_path="/v1/models")


def _needs_of_llama_cpp(engine: Mapping[str, Any], backend: Mapping[str, Any]) -> dict[str, Any]:
    """Sessions keep slots that keep what they read; llama-cpp-python's server has none.

    It computes one call at a time, and counts no tokens in streams.
    """
    if shutil.which(_LLAMA_SERVER) is not None or find_spec("llama_cpp") is None:
        known = backend.get("kind") == "llama_cpp" and backend.get("metrics_path") != ""
        return {"slots": "auto"} if known and _keeps_slots(engine.get("args")) else {}
    return {"max_concurrent": 1, "stream_unary": False, "metrics_path": ""}


def _keeps_slots(args: object) -> bool:
    """Whether each slot of ``llama-server`` has a context of its own: with a number of them only.

    Without a number it takes one context for all, ``--no-kv-unified`` or not.
    Slots of one context are emptied as soon as another has something to do, and what was put aside
    is looked for only where the server chooses the slot.
    """
    words = [str(arg).split("=", 1)[0] for arg in args] if isinstance(args, list | tuple) else []
    if "-1" in words or not {*words}.isdisjoint(_ONE_CONTEXT):
        return False
    return not {*words}.isdisjoint(_OWN_CONTEXTS)


def vllm(engine: EngineSection, cpus: Sequence[int]) -> EngineCommand:
    """``vllm serve``."""
    program = shutil.which("vllm", path=f"{Path(sys.executable).parent}{os.pathsep}"
                           f"{os.environ.get('PATH', '')}")  # fmt: skip
    if program is None:
        raise EngineRefused("vllm is not installed: pip install vllm")
    _needs_gpus(engine)
    if not gpus.read(Path("/")) and sys.platform == "linux" and not _built_for_cpus("vllm"):
        raise EngineRefused("this build of vllm needs a GPU, and there is none here")
    model, env = _model(engine)
    where = ("--host", HOST, "--port", "{port}")
    argv = (program, "serve", model, "--served-model-name", served(engine), *where)
    return EngineCommand((*argv, *_split(engine)), env | _threads(cpus))


MLX: Final = EngineKind(mlx, client="openai")
LLAMA_CPP: Final = EngineKind(llama_cpp, needs=_needs_of_llama_cpp)
VLLM: Final = EngineKind(vllm)


def served(engine: EngineSection) -> str:
    """The name an engine is told to call its model by."""
    return engine.models[0] if engine.models else engine.model


def hub_folder() -> Path:
    """Where Hugging Face's library keeps what it fetched."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(home).expanduser() / "hub"


def cached(repo: str, hub: Path | None = None) -> Path | None:
    """The newest whole copy of a repository in the local cache, if there is one."""
    folder = (hub or hub_folder()) / f"models--{repo.replace('/', '--')}"
    if any((folder / "blobs").glob("*.incomplete")):
        return None
    snapshots = [path for path in (folder / "snapshots").glob("*") if weights_bytes(path)]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def weights_bytes(model: Path) -> int:
    """How large a model's weights are; 0 where there are none."""
    files = [model] if model.is_file() else list(model.glob("*"))
    sizes = [path.stat().st_size for path in files if path.suffix in WEIGHTS and path.is_file()]
    return sum(sizes)


def _model(engine: EngineSection, *, file: bool = False) -> tuple[str, dict[str, str]]:
    """The model as the engine is told, and what it must know to stay off the network."""
    named = engine.model
    path = Path(named).expanduser()
    if path.exists():
        if file and path.is_dir():
            path = _gguf(path)
        if not file and path.is_file():
            raise EngineRefused(f"model {named}: a file, where a folder is expected")
        if not file and not (path / "config.json").is_file():
            raise EngineRefused(f"model {named}: no config.json in this folder")
        if not weights_bytes(path):
            raise EngineRefused(f"model {named}: no weights there")
        return str(path.absolute()), dict(_OFFLINE)
    if not _REPO.fullmatch(named) or path.suffix in WEIGHTS:
        raise EngineRefused(f"model {named}: no such file or folder, and no repository's name")
    found = cached(named)
    if found is not None:
        return (str(_gguf(found)) if file else named), dict(_OFFLINE)
    if os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "yes"):
        raise EngineRefused(f"model {named}: not in {hub_folder()}, and HF_HUB_OFFLINE is set")
    return named, {}


def _gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise EngineRefused(f"model {folder}: no .gguf file in this folder")
    return files[0]


def _needs_package(module: str, package: str, remedy: str) -> None:
    if find_spec(module) is None:
        raise EngineRefused(f"{package} is not installed: {remedy}")


def _needs_memory(engine: EngineSection, model: str) -> None:
    path = Path(model) if Path(model).exists() else cached(model)
    needed = weights_bytes(path) if path is not None else 0
    limit = engine.memory_limit_bytes
    room = psutil.virtual_memory().available
    group = memory_room.room()
    if limit and needed > limit:
        raise EngineRefused(
            f"model {engine.model}: {needed // _MIB} MiB of weights, over memory_limit_bytes, "
            f"{limit // _MIB} MiB"
        )
    whose = ""
    if group is not None and group.left < room:
        room, whose = (
            group.left,
            f" of the {group.limit // _MIB} MiB that its control group may have",
        )
    if needed > room:
        raise EngineRefused(
            f"model {engine.model}: {needed // _MIB} MiB of weights, and {room // _MIB} MiB of "
            f"memory are left{whose}"
        )


def _needs_gpus(engine: EngineSection) -> None:
    if not engine.gpus:
        return
    there = [gpu.index for gpu in gpus.read(Path("/"))]
    for index in engine.gpus:
        if index not in there:
            known = ", ".join(map(str, there)) or "none"
            raise EngineRefused(f"no GPU {index} here; there are: {known}")


def _split(engine: EngineSection) -> tuple[str, ...]:
    """Several GPUs are for one model, which vLLM puts on the first unless it is told."""
    told = any(arg.startswith(_SPLITS) for arg in engine.args)
    return () if told or len(engine.gpus) < 2 else (_SPLITS[0], str(len(engine.gpus)))


def _built_for_cpus(package: str) -> bool:
    try:
        return "cpu" in version(package)
    except PackageNotFoundError:
        return True  # another interpreter's: it will say for itself


def _threads(cpus: Sequence[int]) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(len(cpus))} if cpus else {}
