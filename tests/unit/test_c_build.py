"""When a C build is taken, and what is said of one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway import ROOT
from tpo_mp import c_build
from tpo_mp.c_build import CBuild, Finder, digest, suffix

MODULE = "shop.till"


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this run itself chose."""
    monkeypatch.delenv(c_build.VARIABLE, raising=False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of one module, with a build of it in ``build/c`` that fits."""
    package, home = tmp_path / "shop", tmp_path / "build/c"
    package.mkdir()
    (package / "till.py").write_text("PRICE = 1\n")
    (home / "shop").mkdir(parents=True)
    for name in (c_build.LIBRARY, "shop/till"):
        (home / (name + suffix())).touch()
    told = {"suffix": suffix(), "sources": digest(package), "modules": [MODULE]}
    (home / c_build.MANIFEST).write_text(json.dumps(told))
    return package


def build_of(package: Path) -> CBuild:
    return CBuild(package.parent / "build/c", package)


def test_build_that_fits_is_taken(package: Path) -> None:
    """All of its modules are found in it, and nothing else is."""
    build = build_of(package)
    assert (build.taken, build.name, build.complaint) == (True, "c", None)
    finder = Finder(package.parent / "build/c", build.modules)
    found = finder.find_spec(MODULE)
    assert found is not None
    assert found.origin == str(package.parent / "build/c/shop/till") + suffix()
    assert finder.find_spec("shop.other") is None


@pytest.mark.parametrize(
    ("file", "text"), [("till.py", "PRICE = 2\n"), ("new.py", ""), ("deep/new.py", "")]
)
def test_build_of_other_sources_is_left(package: Path, file: str, text: str) -> None:
    """One byte of any source, or one more file, and the whole build is out."""
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(text)
    build = build_of(package)
    assert (build.taken, build.name, build.fatal) == (False, "python", False)
    assert build.complaint == (
        "the C build is not used: sources changed since it was made; scripts/compile makes it anew"
    )


def test_touched_sources_are_the_same_sources(package: Path) -> None:
    """A copy of the tree has new times and the same bytes."""
    (package / "till.py").touch()
    (package / "till.pyc").touch()
    assert build_of(package).taken


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"suffix": 1, "sources": 2, "modules": 3}'])
def test_unreadable_manifest_is_no_build(package: Path, told: str) -> None:
    """And is complained of."""
    (package.parent / "build/c" / c_build.MANIFEST).write_text(told)
    assert "unreadable" in str(build_of(package).complaint)


def test_build_for_another_interpreter_is_left(package: Path) -> None:
    """Names both."""
    home = package.parent / "build/c"
    told = json.loads((home / c_build.MANIFEST).read_text()) | {"suffix": ".cpython-29.so"}
    (home / c_build.MANIFEST).write_text(json.dumps(told))
    assert f"it is for .cpython-29.so, this is {suffix()}" in str(build_of(package).complaint)


def test_half_a_build_is_left(package: Path) -> None:
    """A file of it is gone."""
    (package.parent / "build/c/shop/till").with_suffix(suffix()).unlink()
    assert "is missing" in str(build_of(package).complaint)


def test_choice(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``off`` leaves it silently; ``require`` is content, or fatal; another word is fatal."""
    monkeypatch.setenv(c_build.VARIABLE, "off")
    build = build_of(package)
    assert (build.taken, build.complaint, build.fatal) == (False, None, False)
    monkeypatch.setenv(c_build.VARIABLE, "require")
    assert build_of(package).complaint is None
    missing = CBuild(package / "none", package)
    assert missing.fatal
    assert "there is none" in str(missing.complaint)
    monkeypatch.setenv(c_build.VARIABLE, "always")
    build = build_of(package)
    assert build.fatal
    assert build.complaint == "TPO_C_BUILD: `always` is none of auto, off, require"


def test_no_build_is_no_complaint(package: Path) -> None:
    """Plain Python is the default."""
    build = CBuild(package / "none", package)
    assert (build.taken, build.complaint) == (False, None)


def test_listed_modules_exist() -> None:
    """Each once, in order; what is renamed is renamed there."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/compile_modules.py", "--list"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    listed = done.stdout.split()
    assert listed == sorted(set(listed))
    assert not [name for name in listed if not (ROOT / (name.replace(".", "/") + ".py")).is_file()]
