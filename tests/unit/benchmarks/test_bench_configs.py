"""Every configuration that is measured loads as it is, with nothing left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.configs import MODES, REAL, SIMULATED, real, toml
from tpo_mp.config.load import load


@pytest.mark.parametrize("mode", MODES)
def test_measured_configuration_loads(mode: str, tmp_path: Path) -> None:
    """A stage that was renamed would be measured as absent."""
    path = tmp_path / "bench.toml"
    path.write_text(toml(mode, "127.0.0.1:9"))
    flags = {"simulate": True} if mode in SIMULATED else {}
    config = load(path, flags, {})
    assert config.warnings == ()
    if mode == "governed":
        assert {"rate_limit", "token_budget"} <= set(config.stage_order)
        assert config.auth.enabled


@pytest.mark.parametrize("mode", REAL)
def test_configuration_of_real_engines_loads(mode: str, tmp_path: Path) -> None:
    """Two engines, each the backend of its name, and a route over both."""
    path = tmp_path / "bench.toml"
    path.write_text(real(mode, "/models/tiny"))
    config = load(path, {}, {})
    assert config.warnings == ()
    assert [engine.name for engine in config.engines] == ["left", "right"]
    assert config.routes[0].backends == ("left", "right")
    assert not any("{" in word for engine in config.engines for word in engine.args)
