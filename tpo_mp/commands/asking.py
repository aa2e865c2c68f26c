"""One HTTP request to a running server, for commands that ask it something.

Invariants: what goes wrong is one line and exit code 1; every wait has an end.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import click
import orjson

from tpo_mp.config.values import is_loopback

MOST_BYTES = 64 << 20
"""Bytes of an answer that are read."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises ``ClickException`` when it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            said = f"the answer (status {self.status}) is no JSON"
            raise failed(said) from None


def ask(
    url: str,
    path: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Told:
    """GET, or POST ``body``; raises ``ClickException`` when nobody answers in time."""
    connection, prefix = connect(url, timeout_s)
    try:
        method = "GET" if body is None else "POST"
        sent = {"content-type": "application/json"} | dict(headers or {})
        connection.request(method, prefix + path, body, sent)
        answer = connection.getresponse()
        told = answer.read(MOST_BYTES)
        lower = {name.lower(): value for name, value in answer.getheaders()}
        return Told(answer.status, lower, told)
    except (OSError, http.client.HTTPException) as error:
        raise failed(f"{url}: {type(error).__name__}: {error}") from None
    finally:
        connection.close()


def connect(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection to a base URL, and the path its own paths begin with."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.UsageError(f"{url!r} is no http:// or https:// URL")
    try:
        port = parts.port
    except ValueError:
        raise click.UsageError(f"{url!r} has no valid port") from None
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    return kind(parts.hostname, port, timeout=timeout_s), parts.path.rstrip("/")


def check_target(url: str, anywhere: bool) -> None:
    """Refuse to burden another machine than this one, unless its owner agrees."""
    host = urlsplit(url).hostname
    if not url.startswith(("http://", "https://")) or not host:
        raise click.UsageError(f"{url!r} is no http:// or https:// URL")
    if not anywhere and not is_loopback(host):
        said = "is not this machine: --anywhere says that its owner agrees"
        raise click.UsageError(f"{host} {said}")


def headers_with(key: str) -> dict[str, str]:
    """Headers of a request to any family's API, with a credential as each wants it."""
    return {
        "content-type": "application/json", "authorization": f"Bearer {key}", "x-api-key": key,
        "x-goog-api-key": key, "anthropic-version": "2023-06-01",
    }  # fmt: skip


def failed(said: str) -> click.ClickException:
    """One line on stderr, and exit code 1, which is click's own for this."""
    return click.ClickException(said)
