"""The catalogue agrees with the features that exist."""

from __future__ import annotations

import pytest

from tpo_mp import registry
from tpo_mp.config import catalog


def test_names_are_unique_and_shipped_ones_known() -> None:
    """A name stands once, at its place in the order."""
    for names in (catalog.STAGES, catalog.ROUTES, catalog.BACKENDS, catalog.UNBUILT):
        assert len(set(names)) == len(names)
    assert set(catalog.STAGES) > catalog.SHIPPED


def test_order_of_built_stages_follows_their_phases() -> None:
    """The default chain would be refused otherwise."""
    built = [name for name in catalog.STAGES if name in registry.names("stages")]
    phases = [getattr(registry.find("stages", name).build, "phase", None) for name in built]
    known = [phase for phase in phases if phase is not None]
    assert known == sorted(known)


def test_default_chain_holds_what_ships_and_what_is_configured() -> None:
    """In the catalogue's order, strangers last."""
    assert catalog.default_stages({"zebra", "auth"}) == [
        "auth", "idempotency", "cache", "dedup", "retry", "admission", "breaker", "zebra"
    ]  # fmt: skip


@pytest.mark.usefixtures("some_stages")
def test_known_names_include_those_to_come() -> None:
    """Suggestions know them."""
    assert {"retry", "compress"} <= set(catalog.known("stages"))
    assert catalog.is_built("stages", "retry")
    assert not catalog.is_built("stages", "compress")
