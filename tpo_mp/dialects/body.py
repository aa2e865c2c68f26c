"""Reading JSON bodies: size check, typed decode, and a walker that names the field at fault.

Invariants: whatever a client sends, the only error is ``InvalidRequest``; a field that is absent
or null reads as None; what no one took is left over and can be passed on untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
import orjson
from msgspec import UNSET, Meta, Struct

from tpo_mp.errors import InvalidRequest

MAX_BRACKETS = 20_000
"""More `{` and `[` than this is not a request but an attack on the parser."""

MAX_INT = 2**53
"""What every JSON parser reads as the same integer."""

Count = Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)]
Index = Annotated[int, Meta(ge=0, le=1_000_000)]
Seconds = Annotated[int, Meta(ge=0, le=MAX_INT)] | Annotated[float, Meta(ge=0, le=MAX_INT)]

ROUTING_FIELDS = (
    "api_base", "base_url", "api_key", "api_version", "extra_headers", "mock_response",
    "organization", "timeout",
)  # fmt: skip
"""Fields by which other gateways let a client choose the upstream; ours are the operator's."""

_T = TypeVar("_T")


def check_json_size(body: bytes) -> None:
    """Refuse bodies whose only purpose is to keep a JSON parser busy."""
    if len(body) > MAX_BRACKETS and body.count(b"{") + body.count(b"[") > MAX_BRACKETS:
        raise InvalidRequest("the body has too many JSON values", reason="invalid_json")


def split_path(message: str) -> tuple[str, str | None]:
    """Split msgspec's ``Expected … - at `$.a[0].b` `` into words and field path.

    What is wrong with a key of a map is said ``at `key` in `$.map` ``.
    """
    words, _, path = message.replace(" - at `key` in `$", " - at `$").partition(" - at `$")
    if path:
        return f"{words} at {path.rstrip('`').lstrip('.')}", path.rstrip("`").lstrip(".")
    if words.startswith("Object missing required field `"):
        field = words.rpartition(" `")[2].rstrip("`")
        return words, field
    return words, None


def typed(decode: Callable[[bytes], _T], body: bytes) -> _T:
    """Decode a client's body with a msgspec decoder; raises ``InvalidRequest`` naming the field."""
    check_json_size(body)
    try:
        if not body.isascii():
            body.decode()  # the decoder skips what it does not read, and upstreams would not
        return decode(body)
    except msgspec.ValidationError as e:
        message, param = split_path(str(e))
        raise InvalidRequest(message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise InvalidRequest(f"the body is not valid JSON: {e}", reason="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", reason="invalid_json") from None


def parse(body: bytes) -> Any:
    """The whole body as Python values."""
    check_json_size(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise InvalidRequest(f"the body is not valid JSON: {e}", reason="invalid_json") from None


def with_fields(body: bytes, **fields: Any) -> bytes:
    """The body with some fields replaced; None removes one."""
    found = Fields(parse(body)).rest(with_null=True) | fields
    for name, value in fields.items():
        if value is None:
            del found[name]
    return orjson.dumps(found)


def without(body: bytes, names: tuple[str, ...]) -> bytes:
    """The body without some fields."""
    found = Fields(parse(body)).rest(with_null=True)
    for name in names:
        found.pop(name, None)
    return orjson.dumps(found)


def with_model(body: bytes, model: str) -> bytes:
    """The body asking for another model name."""
    return with_fields(body, model=model)


def with_stream(body: bytes, stream: bool) -> bytes:
    """The body asking for a stream, or for a whole reply."""
    return with_fields(body, stream=stream)


def strip_routing_fields(body: bytes) -> bytes:
    """The body without the fields of ``ROUTING_FIELDS``."""
    return without(body, ROUTING_FIELDS)


class RoutedHead(Struct, gc=False, kw_only=True):
    """Base of request heads: sees whether any of ``ROUTING_FIELDS`` is there."""

    api_base: Any = UNSET
    base_url: Any = UNSET
    api_key: Any = UNSET
    api_version: Any = UNSET
    extra_headers: Any = UNSET
    mock_response: Any = UNSET
    organization: Any = UNSET
    timeout: Any = UNSET

    def has_routing_fields(self) -> bool:
        """Whether the client tried to steer the upstream from its body."""
        return not (
            self.api_base is UNSET and self.base_url is UNSET and self.api_key is UNSET
            and self.api_version is UNSET and self.extra_headers is UNSET
            and self.mock_response is UNSET and self.organization is UNSET
            and self.timeout is UNSET
        )  # fmt: skip


def user_id(metadata: object) -> str | None:
    """``metadata.user_id``, where clients put a session's name."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return user if isinstance(user, str) and user else None


class Fields:
    """One JSON object being read: each getter takes a field out and checks its type."""

    __slots__ = ("_left", "_path")

    def __init__(self, value: object, path: str = "") -> None:
        """Raise ``InvalidRequest`` unless ``value`` is an object; ``path`` is its place."""
        if not isinstance(value, dict):
            raise wrong(path or "the body", "an object")
        self._left = value.copy()
        self._path = path

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> Any:
        """Any value."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self._left.pop(name, None)
        if value is None or isinstance(value, str):
            return value
        raise wrong(self.at(name), "a string")

    def need_text(self, name: str) -> str:
        """A string that must be there."""
        value = self.text(name)
        if value is None:
            raise wrong(self.at(name), "a string")
        return value

    def flag(self, name: str) -> bool | None:
        """True or false."""
        value = self._left.pop(name, None)
        if value is None or isinstance(value, bool):
            return value
        raise wrong(self.at(name), "true or false")

    def whole(self, name: str) -> int | None:
        """An integer."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_INT:
            whole = int(value)
            if whole == value:
                return whole
        raise wrong(self.at(name), "an integer")

    def number(self, name: str) -> float | None:
        """A number."""
        value = self._left.pop(name, None)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise wrong(self.at(name), "a number")

    def seconds(self, name: str) -> int:
        """Epoch seconds; 0 when absent or absurd."""
        value = self.number(name)
        return int(value) if value is not None and 0 <= value <= MAX_INT else 0

    def items(self, name: str) -> list[Any]:
        """An array; empty when absent."""
        value = self._left.pop(name, None)
        if value is None:
            return []
        if isinstance(value, list):
            return value
        raise wrong(self.at(name), "an array")

    def table(self, name: str) -> dict[str, Any] | None:
        """An object."""
        value = self._left.pop(name, None)
        if value is None or isinstance(value, dict):
            return value
        raise wrong(self.at(name), "an object")

    def inner(self, name: str) -> Fields:
        """An object to read in turn; empty when absent."""
        return Fields(self.table(name) or {}, self.at(name))

    def rest(self, *, with_null: bool = False) -> dict[str, Any]:
        """What nobody took."""
        if with_null:
            return self._left
        return {name: value for name, value in self._left.items() if value is not None}


def texts(value: object, path: str) -> tuple[str, ...]:
    """A string, or an array of strings."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise wrong(path, "a string or an array of strings")


def wrong(path: str, expected: str) -> InvalidRequest:
    """An error that names a field and what it must be."""
    return InvalidRequest(f"{path} must be {expected}", param=path)
