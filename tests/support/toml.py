"""Writes the few lines of configuration that a test needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

NO_RETRIES = "[stages.retry]\nenabled = false\n"
NO_CACHE = "[stages.cache]\nenabled = false\n"
"""For tests that count what an upstream is asked, or want to see its every failure."""
ECHO = '[[backends]]\nname = "echo"\nkind = "echo"\nmodels = ["echo"]\n'


def value(of: Any) -> str:
    """Render one value; tables are written inline."""
    if isinstance(of, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in of.items()) + " }"
    if isinstance(of, (list, tuple)):
        return "[" + ", ".join(value(item) for item in of) + "]"
    return json.dumps(of)


def section(header: str, **fields: Any) -> str:
    """One table; ``header`` is written as it is, brackets included."""
    return "\n".join([header, *(f"{name} = {value(of)}" for name, of in fields.items()), ""])


def backend(name: str, base_url: str, *models: str, **fields: Any) -> str:
    """One backend of kind ``openai``; it serves the model of its own name unless told more."""
    return section(
        "[[backends]]", name=name, kind="openai", base_url=base_url,
        models=models or (name,), **fields,
    )  # fmt: skip
