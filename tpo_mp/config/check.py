"""Raw tables to structs, with every problem found in one go.

msgspec stops at the first problem; ``convert`` notes it, takes the offending key out and tries
again, until what is left is valid or the rest cannot be told apart.

Invariants: a struct comes back only when the table had no problem at all.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from .problems import Problems, nearest, suggestion
from .values import Secret, read_secret

T = TypeVar("T", bound=Struct)

_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`$", re.DOTALL)
_TOKEN: Final = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")
_MOST_PROBLEMS: Final = 50


class Converter:
    """Turns tables into structs; knows where secrets are read from."""

    def __init__(self, env: Mapping[str, str], base: Path | None, problems: Problems) -> None:
        self._env = env
        self._base = base
        self.problems = problems

    def convert(self, raw: object, kind: type[T], path: str) -> T | None:
        """Answer the struct, or ``None`` after noting what is wrong under ``path``."""
        raw = copy.deepcopy(raw)
        sound = True
        removed: set[str] = set()
        for _ in range(_MOST_PROBLEMS):
            try:
                made = msgspec.convert(raw, kind, dec_hook=self._hook)
                return made if sound else None
            except msgspec.ValidationError as error:
                sound = False
                place = _Place(str(error), kind, path)
                place.pin(raw, self._hook)
                if place.missing in removed:
                    return None  # we took it out ourselves, and said why
                self.problems.add(*place.about(raw)) if place.is_key else self._note(place, raw)
                if not place.remove(raw):
                    return None
                removed.add(place.full_path)
        return None

    def _note(self, place: _Place, raw: object) -> None:
        value = place.value(raw)
        self.problems.add_value(place.full_path, value, place.expectation(value))

    def _hook(self, kind: type, raw: object) -> object:
        if kind is Secret:
            return read_secret(raw, self._env, self._base)
        raise TypeError(f"no setting has the type {kind.__name__}")


class _Place:
    """One message of msgspec, taken apart."""

    def __init__(self, message: str, kind: type, base: str) -> None:
        match = _AT.match(message)
        assert match is not None
        self._what: str = match["what"]
        self._tokens = _steps(match["path"] or "")
        self._kind = kind
        self._base = base
        unknown, missing = _UNKNOWN.match(self._what), _MISSING.match(self._what)
        self._unknown = unknown[1] if unknown else None
        self._missing = missing[1] if missing else None
        self.is_key = bool(unknown or missing)

    def pin(self, raw: object, hook: Callable[[type, object], object]) -> None:
        """Find the key that msgspec leaves out where a table holds names of the operator's own."""
        while None in self._tokens:
            at = self._tokens.index(None)
            table = _reach(raw, self._tokens[:at])
            kind = _type_at(self._kind, self._tokens[: at + 1])
            found = _culprit(table, kind, hook) if isinstance(table, dict) else None
            if found is None:
                return
            key, inner = found
            self._tokens[at:] = [key, *inner]

    @property
    def parent_path(self) -> str:
        """The place msgspec names."""
        dotted = "".join(
            f".{t}" if isinstance(t, str) else "[...]" if t is None else f"[{t}]"
            for t in self._tokens
        )
        return f"{self._base}{dotted}".lstrip(".")

    @property
    def full_path(self) -> str:
        """The place of the problem itself."""
        key = self._unknown or self._missing
        return f"{self.parent_path}.{key}".lstrip(".") if key else self.parent_path

    @property
    def missing(self) -> str | None:
        """The path of a missing key."""
        return self.full_path if self._missing else None

    def about(self, raw: object) -> tuple[str, str]:
        """Path and message of a key that is unknown or missing."""
        if self._missing:
            return self.full_path, "required, but missing"
        taken = self.value(raw)
        known = _fields(_type_at(self._kind, self._tokens), taken)
        free = [name for name in known if not isinstance(taken, dict) or name not in taken]
        return self.full_path, f"unknown key; {suggestion(str(self._unknown), free or known)}"

    def expectation(self, value: object) -> str:
        """What was expected, in msgspec's words, with the choices of an enumeration added."""
        text = self._what.replace("`", "")
        if text.startswith("Invalid value") and self._tokens:
            tags = [config.tag for config in _tagged(_type_at(self._kind, self._tokens[:-1]))]
            return _one_of(value, list(map(str, tags))) if tags else text.lower()
        if not text.startswith("Invalid enum value"):
            return text[:1].lower() + text[1:]
        parts = _parts(_type_at(self._kind, self._tokens))
        choices = list(dict.fromkeys(str(word) for part in parts for word in _literals(part)))
        others = [f"or {part.__name__}" for part in parts if part and not _literals(part)]
        return _one_of(value, choices, others)

    def value(self, raw: Any) -> object:
        """The value at the place msgspec names."""
        if None in self._tokens:
            return "…"
        return _reach(raw, self._tokens)

    def remove(self, raw: Any) -> bool:
        """Take the offender out; false when that cannot be done."""
        tokens = self._tokens
        if self._missing or None in tokens:
            return False
        if self._unknown is None:
            if not tokens or not isinstance(tokens[-1], str):
                return False
            *tokens, key = tokens
        else:
            key = self._unknown
        table = _reach(raw, tokens)
        if not isinstance(table, dict) or key not in table:
            return False
        del table[key]
        return True


def _steps(path: str) -> list[str | int | None]:
    """The keys and indexes of a path of msgspec's; None: a key that it does not tell."""
    return [step[1] or (int(step[2]) if step[2] else None) for step in _TOKEN.finditer(path)]


def _culprit(
    table: dict[str, Any], kind: Any, hook: Callable[[type, object], object]
) -> tuple[str, list[str | int | None]] | None:
    """The first entry that is not of this kind, and where in it."""
    for key, value in table.items():
        try:
            msgspec.convert(value, kind, dec_hook=hook)
        except msgspec.ValidationError as error:
            match = _AT.match(str(error))
            return key, _steps(match["path"] or "") if match else []
    return None


def _reach(raw: Any, steps: Sequence[str | int | None]) -> Any:
    """Follow a path; a key with a backtick in it can make msgspec name a place that is none."""
    try:
        for step in steps:
            raw = raw[step]
    except (KeyError, IndexError, TypeError):
        return "…"
    return raw


def _parts(kind: Any) -> list[Any]:
    """A type without ``Annotated`` and ``None``, as the members of its union."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        return [p for member in get_args(kind) if member is not type(None) for p in _parts(member)]
    return [kind]


def _literals(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(member.value for member in kind)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _one_of(value: object, choices: Sequence[str], others: Sequence[str] = ()) -> str:
    said = " ".join([f"expected one of {', '.join(choices)}", *others])
    near = nearest(value, choices)
    return f"{said}; {near}" if near else said


def _fields(kind: Any, table: object) -> list[str]:
    """The keys of a struct; of several, the one that the table's tag names."""
    for part in _parts(kind):
        if isinstance(part, type) and issubclass(part, Struct):
            config = part.__struct_config__
            tag = table.get(config.tag_field) if isinstance(table, dict) else None
            if config.tag is None or config.tag == tag:
                return [field.encode_name for field in msgspec.structs.fields(part)]
    return []


def _tagged(kind: Any) -> list[Any]:
    """The settings of the structs that a tag tells apart."""
    structs = (part for part in _parts(kind) if isinstance(part, type) and issubclass(part, Struct))
    return [part.__struct_config__ for part in structs if part.__struct_config__.tag is not None]


def _type_at(kind: Any, steps: Sequence[str | int | None]) -> Any:
    """The type at a path; of structs that a tag tells apart, all that have such a field."""
    for step in steps:
        found = []
        for part in _parts(kind):
            if isinstance(step, str) and isinstance(part, type) and issubclass(part, Struct):
                fields = msgspec.structs.fields(part)
                found += [field.type for field in fields if field.encode_name == step]
            elif get_args(part) and (get_origin(part) is dict or not isinstance(step, str)):
                found.append(get_args(part)[-1 if get_origin(part) is dict else 0])
        kind = Union[tuple(found)] if found else None  # noqa: UP007 - as many as there are
    return kind
