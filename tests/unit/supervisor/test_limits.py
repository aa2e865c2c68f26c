"""Raising the descriptor limit, where the kernel agrees and where it does not."""

from __future__ import annotations

import resource

import pytest

from tpo_mp.supervisor.limits import Limit, raise_descriptors

ENDLESS = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "cap", "expected"),
    [
        ((1024, 4096), 1 << 30, 4096),
        ((4096, 4096), 1 << 30, 4096),
        ((256, ENDLESS), 1 << 30, ENDLESS),
        ((256, ENDLESS), 24_576, 10_240),
        ((256, ENDLESS), 100, 256),
        ((65_536, ENDLESS), 24_576, 65_536),
        ((ENDLESS, ENDLESS), 1 << 30, ENDLESS),
    ],
    ids=["hard", "there already", "endless", "capped", "refused", "never lower", "no limit"],
)
def test_the_soft_limit_becomes_the_highest_the_kernel_takes(
    limits: Limit, cap: int, expected: int
) -> None:
    """``cap`` is what a kernel allows although it calls the hard limit endless."""
    now = limits

    def put(_which: int, wanted: Limit) -> None:
        nonlocal now
        if wanted[0] > cap or (wanted[0] == ENDLESS and cap < 1 << 30):
            raise ValueError("not allowed to raise maximum limit")
        now = wanted

    assert raise_descriptors(lambda _which: limits, put) == expected
    assert now == (expected, limits[1])
