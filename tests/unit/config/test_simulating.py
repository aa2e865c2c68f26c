"""``[simulator]`` and ``simulate``: one description of a simulated provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tpo_mp.backends import simulator
from tpo_mp.config import load
from tpo_mp.config.blob import from_blob, to_blob
from tpo_mp.config.tree import Config, Defaults
from tpo_mp.errors import ConfigError


def loaded(tree: dict[str, Any], **flags: Any) -> Config:
    """Load a parsed tree."""
    return load.build(tree, flags, {}, None)


def options(config: Config, index: int = 0) -> simulator.Config:
    """The options of a backend that must be a simulator."""
    found = config.backends[index]
    assert isinstance(found, simulator.Config)
    return found


def test_simulate_is_one_backend_without_stages() -> None:
    """With the table's options, and the flag's over them."""
    config = loaded({"simulator": {"seed": 3, "strategy": "lorem"}}, simulate=True, seed=4)
    assert [b.kind for b in config.backends] == ["simulator"]
    assert config.stage_order == ()
    assert (options(config).seed, options(config).strategy) == (4, "lorem")
    assert config.warnings == ()


@pytest.mark.parametrize("flags", [{}, {"simulate": True}])
def test_what_is_left_to_who_reads_the_blob_is_the_same(flags: dict[str, Any]) -> None:
    """Surfaces without options are not imported to be written down."""
    lean = load.load(None, flags, {}, for_blob=True)
    assert Defaults() in lean.surfaces.values()
    assert from_blob(to_blob(lean)) == load.load(None, flags, {})


def test_options_of_surfaces_are_in_the_blob(tmp_path: Path) -> None:
    """Also of ours, which are imported for them only."""
    path = tmp_path / "c.toml"
    path.write_text("[surfaces.status_api]\ndebug = true\n")
    lean = load.load(path, {}, {}, for_blob=True)
    assert lean.surfaces["status_api"] == load.load(path, {}, {}).surfaces["status_api"]
    assert lean.surfaces["status_api"].debug is True  # type: ignore[attr-defined]  # its Config


def test_table_fills_what_backends_leave_out() -> None:
    """A backend's own word wins; other kinds are left alone."""
    backends = [
        {"name": "a", "kind": "simulator", "seed": 1},
        {"name": "b", "kind": "echo"},
        {"name": "c", "kind": "sim"},
    ]
    config = loaded({"simulator": {"seed": 3, "token_ms": 5.0}, "backends": backends})
    assert [options(config, i).seed for i in (0, 2)] == [1, 3]
    assert options(config, 0).token_ms == 5.0


def test_backend_flag_takes_the_table_too() -> None:
    """``serve --backend simulator``."""
    assert options(loaded({"simulator": {"seed": 9}}, backend="simulator")).seed == 9


def test_table_that_nobody_uses_warns() -> None:
    """It is not an error to have one ready."""
    (warning,) = loaded({"simulator": {"seed": 9}}).warnings
    assert warning.startswith("simulator: no backend")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"simulator": {"seed": -1}}, "(from simulator.seed): expected int >= 0"),
        ({"simulator": {"sed": 1}}, "unknown key; did you mean 'seed'?"),
        ({"simulator": {"weight": 1}}, "simulator.weight: belongs to [[backends]], not here"),
        ({"simulator": {"strategy": "shout"}}, "expected one of"),
        (
            {"simulator": {"min_tokens": 9, "max_tokens": 8}},
            "simulator.min_tokens: over max_tokens",
        ),
        ({"simulator": {"latency": {"gpt-*": "instnat"}}}, "simulator.latency.gpt-*: no timing is"),
        (
            {
                "simulator": {
                    "profiles": {
                        "mine": {"first_token_ms": {"shape": "normal", "mean": -1, "sd": 1}}
                    }
                }
            },
            "simulator.profiles.mine.first_token_ms.mean): expected float >= 0",
        ),
        (
            {"simulator": {"profiles": {"mine": {"first_token_ms": {"shape": "bell"}}}}},
            "simulator.profiles.mine.first_token_ms.shape): expected one of fixed, uniform, normal",
        ),
        (
            {
                "simulator": {
                    "profiles": {
                        "mine": {"first_token_ms": {"shape": "lognormal", "p50": 5, "p99": 4}}
                    }
                }
            },
            "simulator.profiles.mine.first_token_ms): p99 is under p50",
        ),
        (
            {
                "simulator": {
                    "profiles": {"mine": {"first_token_ms": {"shape": "empirical", "values": []}}}
                }
            },
            "simulator.profiles.mine.first_token_ms.values): expected array",
        ),
        (
            {"simulator": {"engines": {"mine": {"num_gpu_blocks": 4}}}},
            "simulator.engines.mine.num_gpu_blocks: 4 blocks of 16 tokens do not hold",
        ),
        (
            {"simulator": {"engines": {"mine": {"preset": "nim-9b"}}}},
            "simulator.engines.mine.preset: no preset is named 'nim-9b'; did you mean 'nim-8b'?",
        ),
        (
            {"simulator": {"engines": {"mine": {"max_seqs": 3}}}},
            "unknown key; did you mean 'max_num_seqs'?",
        ),
        ({"simulator": 7}, "simulator = 7: expected a table"),
        ({"backends": [{"name": "a", "kind": "echo"}]}, "backends: tpo-mp simulate has one"),
        ({"routes": [{"strategy": "weighted"}]}, "routes: tpo-mp simulate has one"),
    ],
)
def test_mistakes_are_told_where_they_were_written(tree: dict[str, Any], said: str) -> None:
    """One line, with the place."""
    with pytest.raises(ConfigError) as refused:
        loaded(tree, simulate=True)
    assert said in refused.value.message


def test_sections_of_the_reference_load_with_a_warning() -> None:
    """Telemetry and the like are not built yet; scenarios may stand at the top."""
    tree = {"telemetry": {"x": 1}, "scenarios": {"x": {}}, "simulator": {"seed": 1}}
    config = loaded(tree, simulate=True)
    assert config.warnings == ("telemetry: not built yet, ignored",)
    assert options(config).seed == 1
    assert list(options(config).scenarios) == ["x"]


def test_seed_flag_without_a_table() -> None:
    """The flag alone is enough."""
    assert options(loaded({}, simulate=True, seed=2)).seed == 2


def test_latency_flags_win_over_the_file() -> None:
    """``--no-latency`` over everything."""
    tree = {"simulator": {"latency_multiplier": 3.0}}
    assert options(loaded(dict(tree), simulate=True)).latency_multiplier == 3
    stretched = loaded({"simulator": {}}, simulate=True, latency_multiplier=0.5)
    assert options(stretched).latency_multiplier == 0.5
    none = loaded({"simulator": {}}, simulate=True, latency_multiplier=0.5, no_latency=True)
    assert options(none).latency_multiplier == 0
    with pytest.raises(ConfigError, match="--latency-multiplier"):
        loaded({}, simulate=True, latency_multiplier=-1.0)


def test_recordings_are_looked_for_beside_the_config(tmp_path: Path) -> None:
    """And one that is missing, empty or no numbers is told with its place."""
    waits = {"shape": "empirical", "file": "waits.txt"}

    def build() -> Config:
        tree = {"simulator": {"profiles": {"mine": {"first_token_ms": dict(waits)}}}}
        return load.build(tree, {"simulate": True}, {}, tmp_path)

    for text, said in ((None, "No such file"), ("", "no numbers in it"), ("1 x", "line 1: 'x'")):
        if text is not None:
            (tmp_path / "waits.txt").write_text(text)
        with pytest.raises(ConfigError) as refused:
            build()
        place = "simulator.profiles.mine.first_token_ms.file: "
        assert refused.value.message.startswith(place)
        assert said in refused.value.message
    (tmp_path / "waits.txt").write_text("100 200 # ms\n300\n")
    assert options(build()).profiles["mine"].first_token_ms.quantile(0.5) == 200
