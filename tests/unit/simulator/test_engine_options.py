"""Engines of a configuration: presets, own ones, and what could never work."""

from __future__ import annotations

import msgspec
import pytest

from tpo_mp.simulator.engine_options import (
    EngineOptions,
    all_engines,
    engine_problems,
    topic_of,
)
from tpo_mp.simulator.engine_presets import PRESETS


def test_every_preset_is_an_engine_that_can_run() -> None:
    """With a source, and by its own name."""
    engines = all_engines({})
    assert set(engines) == set(PRESETS)
    assert list(engine_problems(engines)) == []
    assert all(preset.source and preset.assumed for preset in PRESETS.values())


def test_own_engine_changes_what_it_names() -> None:
    """Milliseconds become seconds; the rest is the preset's; a name of a preset can be taken."""
    name, preset = next(iter(PRESETS.items()))
    own = EngineOptions(preset=name, max_num_seqs=3, base_ms=20, scheduling_policy="priority")
    shape = all_engines({name: own})[name].shape()
    assert (shape.max_seqs, shape.costs.base_s, shape.by_priority) == (3, 0.02, True)
    assert shape.blocks == preset.shape.blocks
    assert shape.costs.prefill_token_s == preset.shape.costs.prefill_token_s


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"preset": "nim-9b"}, "preset"),
        ({"num_gpu_blocks": 4, "max_model_len": 100}, "num_gpu_blocks"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 10}, "max_num_batched_tokens"),
    ],
)
def test_engine_that_could_not_run_its_requests_is_refused(
    options: dict[str, object], field: str
) -> None:
    """With the path of the option, and what there is."""
    engine = msgspec.convert(options, EngineOptions)
    ((where, said),) = engine_problems({"mine": engine})
    assert where == f"engines.mine.{field}"
    assert said


@pytest.mark.parametrize("bad", [{"max_num_seqs": 0}, {"base_ms": -1}, {"speedup": 0}, {"seqs": 1}])
def test_options_have_bounds(bad: dict[str, object]) -> None:
    """Unknown ones are errors too."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, EngineOptions)


def test_topic_changes_with_the_engines_only() -> None:
    """So a reload that leaves them alone leaves them running."""
    one = {"a": EngineOptions(base_ms=1), "b": EngineOptions()}
    same = dict(reversed(one.items()))
    assert topic_of("sim", one) == topic_of("sim", same)
    assert topic_of("sim", one) != topic_of("sim", one | {"b": EngineOptions(speedup=2)})
    assert topic_of("sim", one) != topic_of("other", one)
