"""A gateway with a compiled module serves, says so, and leaves a build of other sources alone.

One small module is compiled, in a copy of the tree: all of them take minutes.
``TPO_C_BUILD=require scripts/test`` after ``scripts/compile`` runs the whole suite on a full build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.gateway import ROOT, Gateway
from tests.support.raw import ask, chat

MODULE = "tpo_mp.http.dechunk"
NO_COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is None


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with a C build."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("tpo_mp", "hardware", "scripts"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    done = subprocess.run(
        [sys.executable, "-P", tree / "scripts/compile_modules.py", "--fast", "--only", MODULE],
        capture_output=True, text=True, check=False, timeout=240, cwd=tree,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tree


def environment(tree: Path, choice: str) -> dict[str, str]:
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(tree), "TPO_C_BUILD": choice}


@pytest.mark.timeout(300)
@pytest.mark.skipif(NO_COMPILER, reason="no C compiler")
def test_build_serves_until_sources_change(tree: Path, tmp_path: Path) -> None:
    """Every process says which runs; ``require`` refuses a stale build, ``auto`` warns of it."""
    config = '[[backends]]\nname = "echo"\nkind = "echo"\n'
    environ = environment(tree, "require")
    with Gateway(tmp_path / "fits", config=config, env=environ) as gateway:
        assert ask(gateway.url, "/v1/chat/completions", chat()).status == 200
        for url in (gateway.url, gateway.ops):
            assert ask(url, "/version").json()["build"] == "c"
        assert b'build="c"' in ask(gateway.ops, "/metrics").body
        maps = Path(f"/proc/{gateway.worker_pids()[0]}/maps")
        assert not maps.exists() or str(tree / "build/c/tpo_mp/http/dechunk") in maps.read_text()
    with (tree / "tpo_mp/http/tally.py").open("a") as source:
        source.write("# another line\n")
    refused = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "serve", "--port", "0", "--ops-port", "0"],
        capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        env=os.environ | environ,
    )  # fmt: skip
    assert refused.returncode == 3
    assert refused.stderr.startswith("tpo-mp: the C build is not used: sources changed since")
    assert refused.stderr.count("\n") == 1
    with Gateway(tmp_path / "stale", config=config, env=environment(tree, "auto")) as gateway:
        assert "the C build is not used: sources changed" in gateway.stderr
        assert ask(gateway.url, "/version").json()["build"] == "python"
        assert ask(gateway.url, "/v1/chat/completions", chat()).status == 200
