"""Finds NVIDIA GPUs: by NVML where its library is installed, else ``nvidia-smi``, else the driver.

Each way is tried when the one before it found nothing.

Invariant: a machine without GPUs, without a driver or with a broken one has none; never an error.
Known weakness: the driver's own folder does not tell how much memory there is.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from tpo_mp.supervisor.placement import bus_node

from .machine import Gpu

_WAIT_S = 5.0
_QUERY = "index,name,memory.total,pci.bus_id"
_MIB = 1 << 20


def read(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """List the GPUs of this machine."""
    return by_nvml(root) or by_smi(root) or by_driver(root)


def by_nvml(root: Path) -> tuple[Gpu, ...]:
    """Ask the driver through ``nvidia-ml-py``, if that is installed."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - whatever its library raises: there is nothing to see
        return ()
    try:
        return tuple(_by_handle(nvml, n, root) for n in range(nvml.nvmlDeviceGetCount()))
    except Exception:  # noqa: BLE001
        return ()
    finally:
        with suppress(Exception):
            nvml.nvmlShutdown()


def _by_handle(nvml: Any, index: int, root: Path) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    bus = nvml.nvmlDeviceGetPciInfo(handle).busId
    total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(index, _plain(name), total, bus_node(root, _plain(bus)))


def _plain(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def by_smi(root: Path) -> tuple[Gpu, ...]:
    """Ask ``nvidia-smi``."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        asked = subprocess.run(
            [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=False, timeout=_WAIT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_smi(asked.stdout, root) if asked.returncode == 0 else ()


def parse_smi(text: str, root: Path) -> tuple[Gpu, ...]:
    """Read lines of index, name, MiB of memory and bus."""
    gpus: list[Gpu] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 4 and cells[0].isdigit():
            memory = int(cells[2]) * _MIB if cells[2].isdigit() else None
            gpus.append(Gpu(int(cells[0]), cells[1], memory, bus_node(root, cells[3])))
    return tuple(gpus)


def by_driver(root: Path) -> tuple[Gpu, ...]:
    """Read the driver's folder below ``proc``, in the order of their buses."""
    gpus: list[Gpu] = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        try:
            text = (folder / "information").read_text(errors="replace")
        except OSError:
            continue
        name = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
        gpus.append(Gpu(len(gpus), name[1].strip() if name else "", None,
                        bus_node(root, folder.name)))  # fmt: skip
    return tuple(gpus)
