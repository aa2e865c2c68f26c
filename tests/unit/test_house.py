"""The rules of the house that no linter knows; a rule that is broken names the file."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

import pytest

from tpo_mp import registry
from tpo_mp.config import catalog
from tpo_mp.ports import Door
from tpo_mp.shm.handoff import Handoff

ROOT = Path(__file__).parents[2]
FULL = ROOT / "tests/e2e/pipelines/full.toml"
DOORS: tuple[Door, ...] = get_args(Door)
PRODUCT = sorted(p for room in ("tpo_mp", "hardware") for p in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = sorted(p for room in ("benchmarks", "scripts") for p in (ROOT / room).rglob("*.py"))
VAGUE = {"manager", "mgr", "helper", "helpers", "util", "utils", "common", "misc", "new", "v2",
         "smart", "enhanced", "adaptive", "advanced", "intelligent", "handler"}  # fmt: skip
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "multiprocessing.shared_memory"}
FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "os.system", "os.popen"}


@cache
def tree(path: Path) -> ast.Module:
    """Parse a file."""
    return ast.parse(path.read_text(), str(path))


def name(path: Path) -> str:
    """Name a file as a reader finds it."""
    return str(path.relative_to(ROOT))


def features(door: Door) -> list[str]:
    """List the features of a door; those outside the package come in by entry point."""
    return registry.names(door)


def classes(path: Path) -> Iterator[ast.ClassDef]:
    """Yield the classes at the top of a file."""
    return (node for node in tree(path).body if isinstance(node, ast.ClassDef))


def dotted(node: ast.AST) -> str:
    """Render ``a.b.c``; anything else is empty."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def words(value: Any) -> Iterator[str]:
    """Yield every key and every string of a decoded TOML document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from words(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("door", DOORS)
def test_every_feature_has_a_mirrored_test(door: Door) -> None:
    """``tpo_mp/stages/retry.py`` is tested by ``tests/unit/stages/test_retry.py``."""
    outside = {e.name: e.value.split(".")[0] for e in entry_points(group=f"tpo_mp.{door}")}
    missing = []
    for feature in features(door):
        folder = outside.get(feature, door)
        if not (ROOT / f"tests/unit/{folder}/test_{feature}.py").exists():
            missing.append(f"tests/unit/{folder}/test_{feature}.py")
    assert not missing


def test_every_feature_is_named_in_the_full_pipeline() -> None:
    """A feature that no end-to-end configuration names does not exist."""
    full = tomllib.loads(FULL.read_text())
    named = {
        "stages": set(full.get("pipeline", {}).get("stages", [])),
        "routes": {route.get("strategy", "weighted") for route in full.get("routes", [])},
        "backends": {backend["kind"] for backend in full.get("backends", [])},
        "controllers": set(words(full.get("controllers", {}))),
        # Served unless a config switches them off, or served once it names them.
        "surfaces": set(catalog.SURFACES) | set(full.get("surfaces", {})),
    }
    absent = {door: sorted(set(features(door)) - named[door]) for door in DOORS}
    assert not {door: left for door, left in absent.items() if left}


@pytest.mark.parametrize("door", DOORS)
def test_every_feature_exports_what_the_registry_looks_for(door: Door) -> None:
    """Each feature file loads on its own and has a ``FEATURE``."""
    for feature in features(door):
        assert registry.find(door, feature).Config is not None, feature


def test_public_class_names_are_unique() -> None:
    """One definition per name; ``Config`` is every feature's own."""
    found = Counter(
        node.name
        for path in PRODUCT
        for node in classes(path)
        if not node.name.startswith("_") and node.name != "Config"
    )
    assert not [word for word, times in found.items() if times > 1]


def test_exports_are_real() -> None:
    """Every name in an ``__all__`` exists, once, in order of the alphabet."""
    for path in PRODUCT:
        if "__all__" not in path.read_text() or path.name == "__main__.py":
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = importlib.import_module(".".join(p for p in parts if p != "__init__"))
        exported = list(module.__all__)
        assert len(set(exported)) == len(exported), name(path)
        assert not [word for word in exported if not hasattr(module, word)], name(path)


def test_facades_hold_no_logic() -> None:
    """An ``__init__`` has a docstring, imports and ``__all__``; the root also its version."""
    for path in PRODUCT:
        if path.name != "__init__.py":
            continue
        allowed: tuple[type[ast.stmt], ...] = (
            ast.Import,
            ast.ImportFrom,
            ast.Assign,
            ast.AnnAssign,
            ast.Expr,
        )
        if path == ROOT / "tpo_mp/__init__.py":
            allowed = (*allowed, ast.FunctionDef, ast.If)  # lazy exports
        assert not [n.lineno for n in tree(path).body if not isinstance(n, allowed)], name(path)


def test_no_file_is_two_files() -> None:
    """Past 600 lines a file is two files."""
    every = PRODUCT + TESTS + SCRIPTS
    assert not [name(p) for p in every if p.read_text().count("\n") > 600]


def test_names_are_not_vague() -> None:
    """No file or class is called manager, helper or the like."""
    vague = [name(path) for path in PRODUCT if VAGUE & set(path.stem.split("_"))]
    vague += [
        f"{name(path)}:{node.name}"
        for path in PRODUCT
        for node in classes(path)
        if VAGUE & {word.lower() for word in re.findall("[A-Z][a-z0-9]+", node.name)}
    ]
    assert not vague


def test_nothing_dangerous_is_used() -> None:
    """No pickle, no eval, no shell, no loose YAML."""
    found = []
    for path in PRODUCT:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                imported = {base} | {f"{base}.{alias.name}" for alias in node.names}
            else:
                imported = set()
            shell = isinstance(node, ast.Call) and any(
                k.arg == "shell"
                and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in node.keywords
            )
            called = isinstance(node, ast.Call) and dotted(node.func) in FORBIDDEN_CALLS
            if imported & FORBIDDEN_IMPORTS or shell or called:
                found.append(f"{name(path)}:{getattr(node, 'lineno', 0)}")
    assert not found


def test_nothing_is_left_for_later() -> None:
    """No marks of unfinished work in what ships."""
    marks = ("TODO", "FIX" + "ME", "NotImplementedError")
    assert not [name(p) for p in PRODUCT if any(mark in p.read_text() for mark in marks)]


def test_every_module_and_test_says_what_it_is_for() -> None:
    """Each module opens with a docstring; each test has one."""
    silent = [name(p) for p in PRODUCT + TESTS + SCRIPTS if not ast.get_docstring(tree(p))]
    silent += [
        f"{name(path)}:{node.name}"
        for path in TESTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent


def test_no_test_sleeps() -> None:
    """Tests wait for conditions; only what polls for them, in ``tests/support``, may sleep."""
    found = [
        f"{name(path)}:{node.lineno}"
        for path in TESTS
        if ROOT / "tests/support" not in path.parents and "time.sleep" in path.read_text()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and dotted(node.func) == "time.sleep"
    ]
    assert not found


def test_every_dependency_has_a_reason() -> None:
    """The table of ``tpo_mp/README.md`` has a row per runtime dependency, and no other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[>=<;]", line)[0].strip() for line in project["dependencies"]}
    table = (ROOT / "tpo_mp/README.md").read_text().partition("## Dependencies")[2]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == wanted


def test_every_room_is_described() -> None:
    """The tour of ``tpo_mp/README.md`` names every folder and file at the top."""
    text = (ROOT / "tpo_mp/README.md").read_text()
    rooms = [p.name for p in (ROOT / "tpo_mp").iterdir() if not p.name.startswith("_")]
    named = [room for room in rooms if (ROOT / "tpo_mp" / room).is_dir() or room.endswith(".py")]
    assert not [room for room in named if room not in text]


def test_readme_is_short() -> None:
    """The README stays under 200 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_the_memory_of_a_host_is_listed() -> None:
    """Every structure that a child inherits, and the file that draws its bytes."""
    text = (ROOT / "tpo_mp/README.md").read_text()
    section = text.partition("## The memory of a host")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (`[^|]+`) \|", section, re.MULTILINE))
    inherited = {field for field in Handoff.__struct_fields__ if field.endswith("_fd")}
    assert set(rows) == inherited - {"lifeline_fd"} | {"doorbells"}
    for files in rows.values():
        for file in re.findall(r"`([^`]+)`", files):
            drawn = ast.get_docstring(tree(ROOT / "tpo_mp/shm" / file)) or ""
            assert "::" in drawn or "drawn in" in drawn, file
    listed = set(re.findall(r"(\w+)\.py", section))
    makers = {p.stem for p in PRODUCT if p.parent.name == "shm" and makes_memory(p)}
    assert makers - {"segment", "structure"} <= listed


def makes_memory(path: Path) -> bool:
    """Whether a file makes a segment of its own."""
    bases = {dotted(base) for node in classes(path) for base in node.bases}
    return "Segment.create(" in path.read_text() or bool(
        bases & {"FixedStructure", "SeatStructure"}
    )
