"""What the simulator's scenario reads out of the lags that workers publish."""

from __future__ import annotations

import math
import tomllib

import pytest

from benchmarks import configs
from benchmarks.scenarios.simulator import p99, total
from tpo_mp.config import load

START = {0.001: 10, 0.01: 10, 0.1: 10, math.inf: 10}


def test_percentile_is_of_what_came_between_two_readings() -> None:
    """Straight within a bucket; what lies beyond the last bound is at least that."""
    end = {0.001: 10, 0.01: 1000, 0.1: 1010, math.inf: 1010}
    assert total(end) - total(START) == 1000
    assert p99(START, end) == pytest.approx(0.01)
    assert p99(START, {0.001: 10, 0.01: 10, 0.1: 1010, math.inf: 1010}) == pytest.approx(
        0.01 + 0.99 * 0.09
    )
    assert p99(START, {0.001: 10, 0.01: 10, 0.1: 10, math.inf: 1010}) == 0.1
    assert p99(START, START) == 0


@pytest.mark.parametrize("mode", configs.SIMULATED)
def test_configurations_load(mode: str) -> None:
    """Without a warning; a paced one takes its time."""
    config = load.build(tomllib.loads(configs.toml(mode, "")), {"simulate": True}, {}, None)
    assert config.warnings == ()
    assert (config.backends[0].token_ms > 0) == (mode == "paced")  # type: ignore[attr-defined]
