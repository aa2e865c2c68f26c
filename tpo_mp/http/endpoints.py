"""The one route table both lanes share, and what each route says of itself.

Invariants: a path is matched literally or by ``{name}`` segments, never by prefix or spelling
variants, so permission belongs to the endpoint object and not to a string.  What documents an
endpoint stands beside it and is read only to describe the API, never per request.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tpo_mp.errors import ConfigError

if TYPE_CHECKING:
    from .exchange import Exchange
    from .socket import Open

Handler: TypeAlias = Callable[["Exchange"], object]
"""Answers the exchange itself, or returns a coroutine that will."""

Family: TypeAlias = Literal["openai", "anthropic", "google", "native", "ops"]

Access: TypeAlias = Literal["open", "key", "admin"]
"""Who may use a route once keys are asked for: all, any key, or an admin's key."""

Shape: TypeAlias = Any
"""What a value looks like: a type that msgspec can describe, or a JSON Schema."""

EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or header that an endpoint reads; it may always be left out."""

    name: str
    meaning: str
    shape: Shape = str
    place: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way an endpoint answers; refusals need none, they follow from family and kind."""

    meaning: str
    shape: Shape = None
    status: int = 200
    media: str = "application/json"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method on one path template.

    ``max_body_bytes`` 0 means the server's own limit; ``takes_json`` makes other media types 415.
    ``socket`` takes requests that ask for an upgrade to WebSocket, instead of ``handler``;
    ``access`` says whose key the route asks for, see ``keyring``.

    The rest describes: ``summary`` is the first sentence of the handler's docstring unless given;
    ``request`` the body (``None``: there is none); ``parameters`` the query and headers it reads
    beyond those that all of its kind read; ``outcomes`` its good answers; ``errors`` the statuses
    of its refusals beyond those that all of its kind have; ``infers`` says that it runs a call, so
    an upstream's errors may come back.  ``example`` is a body that the echo backend answers,
    ``example_path`` the path where the template has names (``$CALL_ID`` and the like are set by
    the lines of ``docs/api.md``), ``alias_of`` the template of the route this is another spelling
    of, and ``tags`` are headings; the family is one unless others are given.
    """

    method: str
    template: str
    handler: Handler
    family: Family
    max_body_bytes: int = 1 << 20
    takes_json: bool = True
    socket: Open | None = None
    access: Access = "key"
    summary: str = ""
    request: Shape = None
    parameters: tuple[Parameter, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    errors: tuple[int, ...] = ()
    infers: bool = False
    example: Any = None
    example_path: str = ""
    alias_of: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fill in what follows from the rest."""
        if not self.summary:
            object.__setattr__(self, "summary", _first_sentence(self.handler))
        if not self.tags:
            object.__setattr__(self, "tags", (self.family,))

    def at(self, *templates: str) -> list[Endpoint]:
        """This endpoint and its aliases, which differ in nothing but the path."""
        return [self, *(self._alias(template) for template in templates)]

    def _alias(self, template: str) -> Endpoint:
        path, mark, query = self.example_path.partition("?")
        if path:
            parts = dict(zip(self.template.split("/"), path.split("/"), strict=True))
            path = "/".join(parts[p] if p[:1] == "{" else p for p in template.split("/"))
        path += mark + query
        return replace(self, template=template, alias_of=self.template, example_path=path)


def _first_sentence(handler: Handler) -> str:
    """The docstring up to its first full stop, on one line."""
    text = " ".join((inspect.getdoc(handler) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def _with_slashes(given: list[str], parts: tuple[str, ...]) -> list[str]:
    """A path as one has it whose model, document or breaker may contain slashes."""
    extra = len(given) - len(parts)
    if extra > 0:
        for at, part in enumerate(parts):
            last = at == len(parts) - 1
            if part == "{breaker}" or (part in ("{model}", "{document}") and last):
                end = at + extra + 1
                return [*given[:at], "/".join(given[at:end]), *given[end:]]
    return given


class EndpointTable:
    """Matches (method, path) to an endpoint."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._literal: dict[str, dict[str, Endpoint]] = {}
        self._pattern: list[tuple[tuple[str, ...], dict[str, Endpoint]]] = []
        for endpoint in endpoints:
            self._add(endpoint)
        self.all = [e for m in self._literal.values() for e in m.values()]
        self.all += [e for _, m in self._pattern for e in m.values()]

    def _add(self, endpoint: Endpoint) -> None:
        if "{" not in endpoint.template:
            methods = self._literal.setdefault(endpoint.template, {})
        else:
            parts = tuple(endpoint.template.split("/"))
            known = dict(self._pattern)
            if parts not in known:
                self._pattern.append((parts, known.setdefault(parts, {})))
            methods = known[parts]
        if endpoint.method in methods:
            raise ConfigError(f"two surfaces answer {endpoint.method} {endpoint.template}")
        methods[endpoint.method] = endpoint

    def match(self, method: str, path: str) -> tuple[Endpoint | None, dict[str, str], str]:
        """Endpoint (or ``None``), path parameters, and the methods the path does allow."""
        methods = self._literal.get(path)
        params: dict[str, str] = {}
        if methods is None:
            methods, params = self._match_pattern(path)
        if methods is None:
            return None, {}, ""
        if method == "HEAD" and "HEAD" not in methods:
            return methods.get("GET"), params, ", ".join(methods)
        return methods.get(method), params, ", ".join(methods)

    def family(self, path: str) -> Family | None:
        """The family of a path, whatever the method; ``None`` for one that is not served."""
        methods = self._literal.get(path) or self._match_pattern(path)[0]
        return next(iter(methods.values())).family if methods else None

    def _match_pattern(self, path: str) -> tuple[dict[str, Endpoint] | None, dict[str, str]]:
        given = path.split("/")
        for parts, methods in self._pattern:
            cut = _with_slashes(given, parts)
            if len(cut) != len(parts):
                continue
            params = {}
            for want, have in zip(parts, cut, strict=True):
                if want.startswith("{"):
                    if not have:
                        break
                    params[want[1:-1]] = have
                elif want != have:
                    break
            else:
                return methods, params
        return None, {}
