"""The one route table both lanes share.

Invariants: a path is matched literally or by ``{name}`` segments, never by prefix or spelling
variants, so permission belongs to the endpoint object and not to a string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from .exchange import Exchange

Handler: TypeAlias = Callable[["Exchange"], object]
"""Answers the exchange itself, or returns a coroutine that will."""

Family: TypeAlias = Literal["openai", "anthropic", "native", "ops"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method on one path template.

    ``max_body_bytes`` 0 means the server's own limit; ``takes_json`` makes other media types 415.
    """

    method: str
    template: str
    handler: Handler
    family: Family
    max_body_bytes: int = 1 << 20
    takes_json: bool = True


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
        assert endpoint.method not in methods, endpoint
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

    def _match_pattern(self, path: str) -> tuple[dict[str, Endpoint] | None, dict[str, str]]:
        given = path.split("/")
        for parts, methods in self._pattern:
            # A trailing {name} takes the rest of the path: model names contain slashes.
            if len(given) > len(parts) and parts[-1] == "{model}":
                cut = [*given[: len(parts) - 1], "/".join(given[len(parts) - 1 :])]
            else:
                cut = given
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
