"""Machines written down: lines of ``lscpu -p``, sizes of caches, and whole files, made into trees.

A recording has ``[caches]`` (name and size), ``[cpus]`` (``lscpu -p=CPU,CORE,SOCKET,NODE,CACHE``)
and ``[file PATH]`` sections.  ``unfold`` writes the ``sys`` and ``proc`` files that a kernel shows
of such a machine.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "unit/hardware/machines"
_CACHES = (("1", "Data"), ("1", "Instruction"), ("2", "Unified"), ("3", "Unified"))


def unfold(name: str, root: Path) -> Path:
    """Write a recorded machine's trees below ``root``; answers it."""
    sections: dict[str, list[str]] = defaultdict(list)
    section = ""
    for line in (RECORDED / f"{name}.txt").read_text().splitlines():
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section.startswith("file ") or not line.startswith("#"):
            sections[section].append(line)
    for title, lines in sections.items():
        if title.startswith("file "):
            _write(root / title.removeprefix("file "), "\n".join(lines))
    _cpus(root / "sys/devices/system", sections["cpus"], dict(
        line.split() for line in sections["caches"]
    ))  # fmt: skip
    return root


def _cpus(folder: Path, lines: list[str], sizes: dict[str, str]) -> None:
    rows = [line.replace(",,", ",", 1).split(",") for line in lines]
    _write(folder / "cpu/online", f"0-{len(rows) - 1}" if len(rows) > 1 else "0")
    together: dict[tuple[int, str], list[str]] = defaultdict(list)
    for row in rows:
        for column, value in enumerate(row[1:], 1):
            together[column, value].append(row[0])
    for row in rows:
        cpu, core, socket, node = row[:4]
        about = folder / f"cpu/cpu{cpu}"
        siblings = ",".join(together[1, core])
        _write(about / "topology/core_id", core)
        _write(about / "topology/physical_package_id", socket)
        _write(about / "topology/thread_siblings_list", siblings)
        _write(about / "topology/core_cpus_list", siblings)
        for index, ((level, kind), name, value) in enumerate(
            zip(_CACHES, sizes, row[4:], strict=False)
        ):
            cache = about / f"cache/index{index}"
            _write(cache / "level", level)
            _write(cache / "type", kind)
            _write(cache / "size", sizes[name])
            _write(cache / "shared_cpu_list", ",".join(together[index + 4, value]))
        _write(folder / f"node/node{node}/cpulist", ",".join(together[3, node]))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
