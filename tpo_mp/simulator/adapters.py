"""LoRA adapters of simulated models: those of the configuration, and what is loaded and unloaded
while the host runs, one list for all.

An adapter is a model of its own name: it is listed, it answers as its base does and at the base's
pace, in the base's engine, and shares no cached block with it.

Invariants: a name is an adapter or a configured model, never both; a name that was unloaded, and
loaded again, shares no block with what it was.
Known weakness: what lies at an adapter's path is not looked at.  One of the configuration that was
unloaded stays so until it is loaded, whatever a changed file says.

Source: vLLM's ``--lora-modules``, ``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``,
fields, words and types of its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

import orjson
from msgspec import Meta, Struct, structs

from tpo_mp.errors import NotFound, Rejected

from .live import LiveState, LoadedAdapter

MOST_ADAPTERS: Final = 128
MOST_CHARACTERS: Final = {"lora_name": 128, "lora_path": 1024, "base_model_name": 128}
_WRONG: Final = "InvalidUserInput"


class StaticAdapter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An adapter that is there from the start."""

    path: Annotated[
        str,
        Meta(min_length=1, max_length=1024, description="What is listed as its root."),
    ]
    base: Annotated[
        str, Meta(max_length=128, description="The model it adapts; empty: the first one.")
    ] = ""


def problems(
    static: Mapping[str, StaticAdapter], models: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """What is wrong with the adapters of a configuration that serves these names and globs."""
    most = MOST_CHARACTERS["lora_name"]
    for name, adapter in static.items():
        where = f"adapters.{name}"
        if not name or len(name) > most or not name.isprintable():
            yield where, f"a name has 1 to {most} printable characters"
        elif name in literal(models):
            yield where, "a model has this name; an adapter needs another"
        if not adapter.path.isprintable():
            yield f"{where}.path", "must consist of printable characters"
        if adapter.base and not serves(models, adapter.base):
            yield f"{where}.base", f"{adapter.base!r} is none of `models`"
        elif not adapter.base and not literal(models):
            yield f"{where}.base", "`models` has globs alone: say which model it adapts"


def literal(models: Iterable[str]) -> list[str]:
    """Those of names and globs that are names."""
    return [model for model in models if not set(model) & set("*?[")]


def present(
    static: Mapping[str, StaticAdapter], models: Sequence[str], state: LiveState
) -> dict[str, LoadedAdapter]:
    """The adapters of these models now, by name."""
    there = {
        name: LoadedAdapter(name=name, path=one.path, base=one.base or literal(models)[0], number=0)
        for name, one in static.items()
        if name not in state.adapters_gone
    }
    return there | {one.name: one for one in state.adapters if serves(models, one.base)}


def serves(patterns: Iterable[str], model: str) -> bool:
    """Whether a model is one of these names or globs."""
    return any(p in ("*", model) or fnmatchcase(model, p) for p in patterns)


def loaded(
    state: LiveState,
    fields: Any,
    models: Iterable[str],
    known: Callable[[str], bool],
    static: Collection[str],
) -> LiveState:
    """``state`` with an adapter more, of ``base_model_name`` or else of the first of ``models``.

    ``models`` are names, ``static`` the adapters of the configuration.  Raises ``Rejected`` in the
    words of vLLM.
    """
    name, path = _text(fields, "lora_name"), _text(fields, "lora_path")
    base = _text(fields, "base_model_name") or next(iter(models), "")
    if not name or not path:
        param = "lora_path" if name else "lora_name"
        raise wrong("Both 'lora_name' and 'lora_path' must be provided.", param)
    if name in models:
        raise wrong(f"'{name}' is the name of a model, an adapter needs another.", "lora_name")
    if not base or not known(base):
        raise missing(f"The model `{base}` does not exist.", "base_model_name")
    others = tuple(one for one in state.adapters if one.name != name)
    in_place = fields.get("load_inplace", False)
    if not isinstance(in_place, bool):
        raise wrong("load_inplace must be true or false.", "load_inplace")
    left = set(static) - {*state.adapters_gone, *(one.name for one in others)}
    if (name in left or len(others) < len(state.adapters)) and not in_place:
        said = (
            f"The lora adapter '{name}' has already been loaded. "
            "If you want to load the adapter in place, set 'load_inplace' to True."
        )
        raise wrong(said, "lora_name")
    if len(others) + len(left - {name}) >= MOST_ADAPTERS:
        raise wrong(f"There are {MOST_ADAPTERS} adapters already; unload one.", "lora_name")
    number = state.adapters_loaded + 1
    one = LoadedAdapter(name=name, path=path, base=base, number=number)
    return structs.replace(state, adapters=(*others, one), adapters_loaded=number)


def unloaded(state: LiveState, fields: Any, static: Collection[str] = ()) -> LiveState:
    """``state`` without an adapter; raises ``Rejected`` in the words of vLLM.

    ``static`` are the adapters of the configuration.
    """
    name = _text(fields, "lora_name")
    if not name:
        raise wrong("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
    left = tuple(one for one in state.adapters if one.name != name)
    gone = tuple(one for one in state.adapters_gone if one in static)
    configured = name in static and name not in gone
    if len(left) == len(state.adapters) and not configured:
        raise missing(f"The lora adapter '{name}' cannot be found.", "lora_name")
    return structs.replace(
        state, adapters=left, adapters_gone=(*gone, name) if configured else gone
    )


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
