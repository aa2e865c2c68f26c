"""Other spellings: each moves to a place that exists, and two spellings never meet in silence."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tpo_mp import registry
from tpo_mp.config import catalog
from tpo_mp.config.aliases import ALIASES, WITHOUT_EFFECT
from tpo_mp.config.load import SECTIONS
from tpo_mp.config.tree import Config

pytestmark = pytest.mark.usefixtures("only_core")

Refused = Callable[..., list[str]]


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias.old)
def test_target_of_an_alias_exists(alias: object) -> None:
    """A row leads to a setting, to a stage's options, or to something known to come."""
    path = str(getattr(alias, "new", ""))
    if any(path == known or path.startswith(f"{known}.") for known in catalog.UNBUILT):
        return
    section, *rest = path.split(".")
    if section == "stages":
        assert rest[0] in catalog.STAGES
        return
    if section == "surfaces":
        assert rest[1] in registry.find("surfaces", rest[0]).Config.__struct_fields__
        return
    simulator = registry.find("backends", "simulator").Config
    kind: object = simulator if section == "simulator" else SECTIONS[section]
    for key in rest:
        assert isinstance(kind, type)
        kind = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}[key]
        kind = getattr(kind, "__origin__", kind)


def test_each_spelling_stands_in_the_table_once() -> None:
    """Two rows for one spelling would depend on their order."""
    spellings = [alias.old for alias in ALIASES]
    assert len(set(spellings)) == len(spellings)


def test_both_spellings_are_an_error(refused: Refused) -> None:
    """Neither wins in silence."""
    text = "[server]\nops_port = 1\n[observability]\nmetrics_port = 2\n"
    assert refused(text) == [
        "observability.metrics_port: server.ops_port is the same setting; keep one of them"
    ]


def test_two_other_spellings_are_an_error_too(refused: Refused) -> None:
    """The message names the one that was read first."""
    text = "rag_channel_capacity = 1\n[channel_sizes]\nrag_to_assemble = 2\n"
    assert refused(text) == [
        "rag_channel_capacity: channel_sizes.rag_to_assemble is the same setting; keep one of them"
    ]


def test_wrong_value_names_both_spellings(refused: Refused) -> None:
    """The canonical path explains, the written one is what the reader searches for."""
    (problem,) = refused("[observability]\nmetrics_port = 70000\n")
    assert problem.startswith("server.ops_port = 70000 (from observability.metrics_port): ")


def test_unknown_key_beside_known_spellings_is_refused(refused: Refused) -> None:
    """Suggestions speak the spelling that is being written."""
    assert refused("[resilience]\nretry_atempts = 3\n") == [
        "resilience.retry_atempts: unknown key; did you mean 'retry_attempts'?"
    ]
    assert refused("[stages.inference]\nwroker = 'echo'\n") == [
        "stages.inference.wroker: unknown key; did you mean 'worker'?"
    ]


def test_empty_table_of_other_spellings_is_nothing(load_text: Callable[..., Config]) -> None:
    """A heading alone sets nothing."""
    assert load_text("[resilience]\n").warnings == ()


@pytest.mark.parametrize("stage", ["assemble", "inference", "post_process", "stream"])
def test_stage_that_is_always_on_cannot_be_switched_off(refused: Refused, stage: str) -> None:
    """Ignoring the wish in silence would be worse."""
    (problem,) = refused(f"[stages.{stage}]\nenabled = false\n")
    assert problem == f"stages.{stage}.enabled = False: this stage is always on"


@pytest.mark.parametrize("path", WITHOUT_EFFECT)
def test_key_without_effect_warns(load_text: Callable[..., Config], path: str) -> None:
    """The reader learns what to write instead."""
    table, _, key = path.rpartition(".")
    text = f"[{table}]\n{key} = 1\n" if table else f"{key} = 1\n"
    (warning,) = load_text(text).warnings
    assert warning.startswith(f"{path} has no effect: ")
