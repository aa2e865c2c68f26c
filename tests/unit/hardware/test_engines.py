"""What is said of a model server before it is started, and how its command line is made."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from hardware import engines, gpus
from hardware.machine import Gpu
from tpo_mp.config.engines import EngineRefused, EngineSection
from tpo_mp.supervisor.memory_room import MemoryRoom


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 5000)
    return folder


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and every package installed."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(engines, "find_spec", lambda _name: object())
    monkeypatch.setattr(engines.shutil, "which", lambda name, path=None: f"/bin/{name}")
    monkeypatch.setattr(gpus, "read", lambda _root: ())
    return tmp_path / "hub"


def keep(hub: Path, repo: str) -> Path:
    """Put a repository into the cache."""
    folder = hub / f"models--{repo.replace('/', '--')}" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def engine(model: object, **options: object) -> EngineSection:
    """Settings of one."""
    return EngineSection(name="e", model=str(model), port=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "backend", "auto"),
    [
        (["-np", "2"], {}, True), (["--parallel=2"], {}, True), (["--no-kv-unified"], {}, False),
        ([], {}, False), (["-c", "4096"], {}, False), (["-np", "-1"], {}, False),
        (["-np", "2", "-kvu"], {}, False), ("-np", {}, False),
        (["-np", "2"], {"kind": "openai"}, False),
        (["-np", "2"], {"metrics_path": ""}, False),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("model")
def test_sessions_keep_slots_that_keep_what_they_read(
    args: object, backend: dict[str, str], auto: bool
) -> None:
    """Where each has a context of its own, and the backend can tell who uses them."""
    needs = engines.LLAMA_CPP.needs({"args": args}, {"kind": "llama_cpp"} | backend)
    assert needs == ({"slots": "auto"} if auto else {})


def test_commands_name_model_address_and_threads(model: Path) -> None:
    """Each kind in its own words; a model that is here needs no network."""
    made = engines.mlx(engine(model), (2, 3))
    assert made.argv[:5] == (sys.executable, "-m", "hardware.mlx_engine", "--model", str(model))
    assert made.argv[5:7] == ("--served-model-name", str(model))
    assert made.env["OMP_NUM_THREADS"] == "2"
    assert made.env["HF_HUB_OFFLINE"] == "1"
    (model / "a.gguf").write_bytes(b"x")
    made = engines.llama_cpp(engine(model, models=("small",)), (2, 3))
    assert made.argv[:5] == ("/bin/llama-server", "--model", str(model / "a.gguf"), "--alias",
                             "small")  # fmt: skip
    assert made.argv[-2:] == ("--threads", "2")
    assert "--metrics" in made.argv


def test_a_whole_copy_in_the_cache_needs_no_network(hub: Path) -> None:
    """One that is half fetched does, and one that is not there cannot be had offline."""
    folder = keep(hub, "org/big")
    assert engines.mlx(engine("org/big"), ()).env["HF_HUB_OFFLINE"] == "1"
    (folder.parents[1] / "blobs").mkdir()
    (folder.parents[1] / "blobs" / "x.incomplete").write_bytes(b"")
    assert engines.mlx(engine("org/big"), ()).env == {}


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (engines.mlx, {"model": "/absent"}, "no such file or folder"),
        (engines.mlx, {"model": "absent.gguf"}, "no such file or folder"),
        (engines.llama_cpp, {"model": "org/m", "gpus": (3,)}, "no GPU 3 here; there are: none"),
        (engines.vllm, {"model": "org/m", "gpus": (3,)}, "no GPU 3 here; there are: none"),
    ],
)
def test_what_would_fail_is_said_before(
    kind: object, options: dict[str, object], said: str
) -> None:
    """One line each."""
    with pytest.raises(EngineRefused, match=said):
        kind(engine(options.pop("model"), **options), ())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("chosen", "args", "told"),
    [
        ((), (), None),
        ((1,), (), None),
        ((0, 1), (), "2"),
        ((0, 1), ("--pipeline-parallel-size", "2"), None),
        ((0, 1), ("-tp=1",), None),
    ],
)
def test_vllm_splits_a_model_over_the_gpus_it_is_given(
    chosen: tuple[int, ...],
    args: tuple[str, ...],
    told: str | None,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless its arguments say how."""
    there = tuple(Gpu(n, "A", None, None) for n in range(2))
    monkeypatch.setattr(gpus, "read", lambda _root: there)
    argv = engines.vllm(engine(model, gpus=chosen, args=args), ()).argv
    given = dict(pairwise(argv))
    assert given.get("--tensor-parallel-size") == told
    with pytest.raises(EngineRefused, match="no GPU 7 here; there are: 0, 1"):
        engines.vllm(engine(model, gpus=(7,)), ())


def test_weights_over_the_limit_and_missing_packages_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before minutes of loading, not after."""
    with pytest.raises(EngineRefused, match="over memory_limit_bytes"):
        engines.mlx(engine(model, memory_limit_bytes=4096), ())
    monkeypatch.setattr(engines, "_built_for_cpus", lambda _package: False)
    monkeypatch.setattr(engines.sys, "platform", "linux")
    with pytest.raises(EngineRefused, match="needs a GPU, and there is none"):
        engines.vllm(engine(model), ())
    monkeypatch.setattr(engines, "find_spec", lambda _name: None)
    monkeypatch.setattr(engines.shutil, "which", lambda _name, path=None: None)
    for kind, said in ((engines.mlx, "mlx-lm is not installed"),
                       (engines.llama_cpp, "llama-server is not in PATH"),
                       (engines.vllm, "vllm is not installed")):  # fmt: skip
        with pytest.raises(EngineRefused, match=said):
            kind(engine(model), ())


def test_a_repository_that_is_not_here_cannot_be_had_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The refusal names the cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EngineRefused, match="HF_HUB_OFFLINE is set"):
        engines.mlx(engine("org/absent"), ())


def test_weights_over_what_the_control_group_has_left_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's machine has more memory than it."""
    monkeypatch.setattr(engines.memory_room, "room", lambda: MemoryRoom(64 << 20, (64 << 20) - 99))
    with pytest.raises(EngineRefused, match="of the 64 MiB that its control group may have"):
        engines.mlx(engine(model), ())
