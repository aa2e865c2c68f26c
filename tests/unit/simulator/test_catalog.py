"""The catalogue: names, families, and names nobody knows."""

from __future__ import annotations

import re

from tpo_mp.simulator.catalog import DESIGN, GROUNDS, MODELS, traits_of


def test_dated_name_is_its_family() -> None:
    """The longest family wins; another suffix is another model."""
    assert traits_of("gpt-4o-mini-2024-07-18") == traits_of("gpt-4o-mini")
    assert traits_of("o3-2025-04-16").reasons
    assert traits_of("gpt-4o-special").kind == "any"


def test_unknown_name_is_a_model_without_restriction() -> None:
    """It chats, completes and embeds."""
    assert traits_of("mine").kind == "any"


def test_catalogue_has_every_kind() -> None:
    """So that each endpoint works without a config."""
    assert {traits_of(model).kind for model in MODELS} == {"any", "chat", "completion", "embedding"}


def test_grounds_are_of_models_with_limits_and_have_a_date() -> None:
    """A page and the day it was read, or the label of what was chosen here."""
    for model, grounds in GROUNDS.items():
        assert model in MODELS
        traits = traits_of(model)
        assert traits.context
        assert traits.most_output
        for ground in grounds:
            assert ground == DESIGN or re.fullmatch(r"[\w.-]+(/[\w.-]+)+, 20\d\d-\d\d-\d\d", ground)
    chosen = {"gpt-4", "gpt-4-turbo", "gpt-4o", "gpt-3.5-turbo", "claude-2.1"}
    assert chosen <= set(GROUNDS)
