"""Stages, backends and routes: options are checked by the feature's own struct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tpo_mp import registry
from tpo_mp.config import catalog
from tpo_mp.config.tree import Config

pytestmark = pytest.mark.usefixtures("some_stages")

Refused = Callable[..., list[str]]
Loads = Callable[..., Config]

BACKENDS = '[[backends]]\nname = "a"\nkind = "echo"\n[[backends]]\nname = "b"\nkind = "echo"\n'


def test_shipped_default_runs_what_is_built(load_text: Loads) -> None:
    """Of the stages that ship on, only ours exists here; nothing warns about the others."""
    config = load_text()
    assert config.stage_order == ("retry",)
    assert config.warnings == ()


def test_configuring_a_stage_turns_it_on(load_text: Loads) -> None:
    """Without a list, options are enough, and the order is the phases'."""
    assert load_text("[stages.rate_limit]\n").stage_order == ("rate_limit", "retry")


def test_stage_can_be_switched_off(load_text: Loads) -> None:
    """Its options stay, and stay checked."""
    assert load_text("[stages.retry]\nenabled = false\nattempts = 2\n").stage_order == ()


def test_options_of_a_stage_that_is_off_are_checked(refused: Refused) -> None:
    """Switching it on again brings no surprise."""
    (problem,) = refused("[stages.retry]\nenabled = false\nattempts = 99\n")
    assert problem == "stages.retry.attempts = 99: expected int <= 10"


def test_list_is_the_whole_chain(load_text: Loads) -> None:
    """Not in the list is not running, and configuring it then warns."""
    config = load_text('[pipeline]\nstages = ["rate_limit"]\n[stages.retry]\nattempts = 2\n')
    assert config.stage_order == ("rate_limit",)
    assert config.warnings == (
        "stages.retry: configured, but pipeline.stages does not list it",
    )  # fmt: skip


def test_list_against_the_phases_is_refused(refused: Refused) -> None:
    """Never a silent sort."""
    (problem,) = refused('[pipeline]\nstages = ["retry", "rate_limit"]\n')
    assert problem == (
        "pipeline.stages: 'rate_limit' belongs to an outer phase: list it before 'retry'"
    )


def test_stage_listed_twice_is_refused(refused: Refused) -> None:
    """It would run twice."""
    assert refused('[pipeline]\nstages = ["retry", "retry"]\n') == [
        "pipeline.stages: 'retry' is listed twice"
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('[pipeline]\nstages = ["rtry"]\n', "pipeline.stages = 'rtry'"),
        ("[stages.rtry]\n", "stages.rtry = 'rtry'"),
    ],
)
def test_unknown_stage_is_refused_with_a_suggestion(refused: Refused, text: str, path: str) -> None:
    """In the list as in its table."""
    assert refused(text) == [f"{path}: unknown; did you mean 'retry'?"]


def test_stage_that_cannot_be_imported_is_a_problem_with_its_reason(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing optional package is no traceback."""

    def fail(door: str, name: str) -> None:
        raise ImportError("No module named 'redis'")

    monkeypatch.setattr(registry, "find", fail)
    assert "stages.retry = 'retry': cannot be loaded: No module named 'redis'" in refused()


def test_backend_needs_a_kind_that_exists(refused: Refused) -> None:
    """Missing, unknown, misspelt."""
    assert refused('[[backends]]\nname = "a"\n')[0].startswith("backends[0].kind: required")
    (problem,) = refused('[[backends]]\nname = "a"\nkind = "ecko"\n')
    assert problem == "backends[0].kind = 'ecko': unknown; did you mean 'echo'?"


def test_two_backends_have_two_names(refused: Refused) -> None:
    """Routes, metrics and breakers go by name."""
    (problem,) = refused(BACKENDS.replace('"b"', '"a"'))
    assert problem == "backends[1].name = 'a': another backend has this name"


def test_route_without_backends_means_all(load_text: Loads) -> None:
    """In the order of the file."""
    config = load_text(BACKENDS + '[[routes]]\nmodels = ["m"]\n')
    assert [(r.models, r.backends) for r in config.routes] == [(("m",), ("a", "b"))]


def test_route_names_backends_that_exist(refused: Refused) -> None:
    """A missing one is told with what was meant."""
    (problem,) = refused(
        BACKENDS.replace('"a"', '"alpha"') + '[[routes]]\nbackends = ["alhpa", "b"]\n'
    )
    assert problem == "routes[0].backends = 'alhpa': no such backend; did you mean 'alpha'?"


def test_option_of_a_strategy_stands_beside_it(refused: Refused) -> None:
    """Weighted has none, so any is unknown."""
    (problem,) = refused(BACKENDS + "[[routes]]\nspeed = 1\n")
    assert problem.startswith("routes[0].speed: unknown key")


def test_options_survive_as_the_features_own_struct(load_text: Loads) -> None:
    """What a stage gets is what its file declares."""
    retry: Any = load_text("[stages.retry]\nattempts = 7\n").stages["retry"]
    assert (type(retry).__name__, retry.attempts) == ("RetryConfig", 7)


def test_switch_that_is_no_switch_is_refused(refused: Refused) -> None:
    """``"no"`` would have run it."""
    assert refused('[stages.retry]\nenabled = "no"\n') == [
        "stages.retry.enabled = 'no': expected bool"
    ]
    assert refused("[surfaces.native_api]\nenabled = 0\n") == [
        "surfaces.native_api.enabled = 0: expected bool"
    ]


def test_shipped_surfaces_are_served_with_their_defaults(load_text: Loads) -> None:
    """Nobody has to name them."""
    config = load_text()
    assert tuple(config.surfaces) == catalog.SURFACES
    native: Any = config.surfaces["native_api"]
    assert (native.max_tokens, native.temperature) == (None, None)


def test_surface_has_options_and_a_switch(load_text: Loads) -> None:
    """Both are said in its table; the sampling of the reference's inference stage is one."""
    config = load_text(
        "[surfaces.native_api]\nmax_tokens = 9\n[surfaces.ops_api]\nenabled = false\n"
    )
    native: Any = config.surfaces["native_api"]
    assert native.max_tokens == 9
    assert "ops_api" not in config.surfaces
    text = '[stages.inference]\nworker = "echo"\nmodel = "m"\nmax_tokens = 7\ntemperature = 0.1\n'
    other: Any = load_text(text).surfaces["native_api"]
    assert (other.max_tokens, other.temperature) == (7, 0.1)


NATIVE = "surfaces.native_api"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[surfaces.native_ap]\n", "surfaces.native_ap = 'native_ap': unknown; did you mean"),
        (f"[{NATIVE}]\nmax_tokens = 0\n", f"{NATIVE}.max_tokens = 0: expected int >= 1"),
        (f"[{NATIVE}]\nmaxtokens = 1\n", f"{NATIVE}.maxtokens: unknown key; did you mean"),
        ("[surfaces]\nnative_api = 1\n", f"{NATIVE} = 1: expected a table"),
    ],
)
def test_surfaces_are_checked_like_stages(refused: Refused, text: str, problem: str) -> None:
    """Name, bounds, keys, shape."""
    (said,) = refused(text)
    assert said.startswith(problem)
