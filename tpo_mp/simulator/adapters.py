"""LoRA adapters of simulated models: loaded and unloaded while the host runs, one list for all.

An adapter is a model of its own name: it is listed, it answers as its base does and at the base's
pace, in the base's engine, and shares no cached block with it.

Invariants: a name is an adapter or a configured model, never both; a name that was unloaded, and
loaded again, shares no block with what it was.
Known weakness: what lies at an adapter's path is not looked at.

Source: vLLM's ``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, fields, words and types of
its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

import orjson
from msgspec import structs

from tpo_mp.errors import NotFound, Rejected

from .live import LiveState, LoadedAdapter

MOST_ADAPTERS: Final = 128
MOST_CHARACTERS: Final = {"lora_name": 128, "lora_path": 1024, "base_model_name": 128}
_WRONG: Final = "InvalidUserInput"


def serves(patterns: Iterable[str], model: str) -> bool:
    """Whether a model is one of these names or globs."""
    return any(p in ("*", model) or fnmatchcase(model, p) for p in patterns)


def loaded(
    state: LiveState, fields: Any, first: str, known: Callable[[str], bool], literal: set[str]
) -> LiveState:
    """``state`` with an adapter more, of ``base_model_name`` or else of the model ``first``.

    Raises ``Rejected`` in the words of vLLM.
    """
    name, path = _text(fields, "lora_name"), _text(fields, "lora_path")
    base = _text(fields, "base_model_name") or first
    if not name or not path:
        param = "lora_path" if name else "lora_name"
        raise wrong("Both 'lora_name' and 'lora_path' must be provided.", param)
    if name in literal:
        raise wrong(f"'{name}' is the name of a model, an adapter needs another.", "lora_name")
    if not base or not known(base):
        raise missing(f"The model `{base}` does not exist.", "base_model_name")
    others = tuple(one for one in state.adapters if one.name != name)
    in_place = fields.get("load_inplace", False)
    if not isinstance(in_place, bool):
        raise wrong("load_inplace must be true or false.", "load_inplace")
    if len(others) < len(state.adapters) and not in_place:
        said = (
            f"The lora adapter '{name}' has already been loaded. "
            "If you want to load the adapter in place, set 'load_inplace' to True."
        )
        raise wrong(said, "lora_name")
    if len(others) >= MOST_ADAPTERS:
        raise wrong(f"There are {MOST_ADAPTERS} adapters already; unload one.", "lora_name")
    number = state.adapters_loaded + 1
    one = LoadedAdapter(name=name, path=path, base=base, number=number)
    return structs.replace(state, adapters=(*others, one), adapters_loaded=number)


def unloaded(state: LiveState, fields: Any) -> LiveState:
    """``state`` without an adapter; raises ``Rejected`` in the words of vLLM."""
    name = _text(fields, "lora_name")
    if not name:
        raise wrong("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
    left = tuple(one for one in state.adapters if one.name != name)
    if len(left) == len(state.adapters):
        raise missing(f"The lora adapter '{name}' cannot be found.", "lora_name")
    return structs.replace(state, adapters=left)


def wrong(said: str, param: str) -> Rejected:
    """A 400 with vLLM's type."""
    return Rejected(said, reason=_WRONG, param=param)


def missing(said: str, param: str) -> NotFound:
    """A 404 with vLLM's type."""
    return NotFound(said, reason="NotFoundError", param=param)


def error_body(error: Rejected) -> bytes:
    """An error as vLLM writes it: the type is a name, the code is the status."""
    told = {"message": error.message, "type": error.reason, "param": error.param,
            "code": error.status}  # fmt: skip
    return orjson.dumps({"error": told})


def _text(fields: Any, name: str) -> str:
    if not isinstance(fields, dict):
        raise wrong("the body must be an object", name)
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS[name]:
        raise wrong(f"{name} must be a string of at most {MOST_CHARACTERS[name]} characters.", name)
    if not value.isprintable():
        raise wrong(f"{name} must consist of printable characters.", name)
    return value
