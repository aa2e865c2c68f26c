"""The catalogue: names, families, and names nobody knows."""

from __future__ import annotations

from tpo_mp.simulator.catalog import MODELS, traits_of


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
