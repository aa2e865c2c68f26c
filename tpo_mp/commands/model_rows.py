"""What is known of a simulated model, as a row: for commands that list models."""

from __future__ import annotations

from typing import Any, Final

from tpo_mp.simulator.catalog import traits_of

KINDS: Final = ("chat", "completion", "embedding", "any")


def model_row(name: str) -> dict[str, Any]:
    """A model's kind and limits; limits nobody knows are left out."""
    traits = traits_of(name)
    row: dict[str, Any] = {"id": name, "kind": traits.kind, "reasons": traits.reasons}
    if traits.kind == "embedding":
        row["dimensions"] = traits.dimensions
    if traits.context:
        row["context"] = traits.context
    if traits.most_output:
        row["most_output"] = traits.most_output
    return row


def of_kind(rows: list[dict[str, Any]], kind: str | None) -> list[dict[str, Any]]:
    """The rows of one kind, or all."""
    return [row for row in rows if kind is None or row["kind"] == kind]
