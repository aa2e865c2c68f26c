"""What a number was measured on: machine, versions, commit and date."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("uvloop", "httptools", "aiohttp", "msgspec", "orjson", "psutil")


def facts() -> dict[str, str]:
    """Describe the machine, without its name."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "cpu": _cpu_model(),
        "cores": str(psutil.cpu_count() or os.cpu_count() or 0),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Answer the versions of the interpreter, of what the data path uses, and our own commit."""
    found = {"python": platform.python_version(), "tpo-mp": commit()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found


def now() -> str:
    """Answer the date and time in UTC."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit() -> str:
    """Answer the short commit, with a plus when files differ from it; ``unknown`` outside git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "tpo_mp", "hardware")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*words: str) -> str:
    out = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return out.stdout.strip()


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
