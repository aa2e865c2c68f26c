"""The fence is there where stores may pass each other, and skipped where they cannot."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator

import pytest

from tpo_mp.shm import fence as fence_module


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Leave the module as this machine has it."""
    yield
    importlib.reload(fence_module)


@pytest.mark.parametrize(
    ("machine", "forced", "fenced"),
    [
        ("x86_64", "", False),
        ("AMD64", "", False),
        ("arm64", "", True),
        ("aarch64", "", True),
        ("riscv64", "", True),
        ("x86_64", "1", True),
    ],
)
def test_only_x86_64_skips_the_fence(
    machine: str, forced: str, fenced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every machine not known to keep stores in order pays for the fence."""
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: machine)
        patch.setenv("TPO_FENCE", forced)
        importlib.reload(fence_module)
        assert fence_module.FENCED is fenced


def test_fence_releases_its_lock() -> None:
    """It can be called again at once."""
    fence_module.fence()
    fence_module.fence()
