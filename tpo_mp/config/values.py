"""Value types that settings share: secrets, timeouts, checked URLs.

Invariants: a ``Secret`` never shows its value in ``repr``, ``str`` or an error message; a URL that
passed ``check_url`` names an http(s) host that is no cloud metadata service.
Weakness: a host *name* that resolves to a metadata address is only caught when it is a known one.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct

SECRET_FILE_BYTES: Final = 65_536

SecretSource: TypeAlias = Literal["literal", "env", "file", "client"]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of settings: frozen, named fields, nothing unknown."""


class Secret:
    """A credential and where it came from.

    ``client`` secrets have no value: the caller's own credential is forwarded.
    """

    __slots__ = ("_value", "name", "source")

    def __init__(self, value: str, source: SecretSource = "literal", name: str = "") -> None:
        self._value = value
        self.source: SecretSource = source
        self.name = name

    @classmethod
    def forwarded(cls) -> Secret:
        """The caller's own credential."""
        return cls("", "client")

    @property
    def from_client(self) -> bool:
        """Whether the caller's own credential is to be forwarded."""
        return self.source == "client"

    def reveal(self) -> str:
        """Answer the value; empty when it is the caller's."""
        return self._value

    def shown(self) -> dict[str, Any] | str:
        """Render for people: the reference, or ``***`` for a literal."""
        if self.source == "literal":
            return "***"
        return {self.source: True if self.source == "client" else self.name}

    def __repr__(self) -> str:
        return f"Secret({self.source}{':' if self.name else ''}{self.name})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self._value, self.source, self.name) == (other._value, other.source, other.name)

    def __hash__(self) -> int:
        return hash((self._value, self.source, self.name))


class Timeouts(Section, frozen=True, kw_only=True):
    """How long each part of an upstream exchange may take."""

    connect_s: Annotated[float, Meta(gt=0, le=300, description="Seconds to open a connection.")] = (
        5.0
    )
    first_byte_s: Annotated[
        float,
        Meta(
            gt=0, le=86400, description="Seconds from the request to the first byte of the reply."
        ),
    ] = 300.0
    idle_s: Annotated[
        float, Meta(gt=0, le=86400, description="Seconds between two chunks of a reply.")
    ] = 120.0
    total_s: Annotated[
        float, Meta(gt=0, le=86400, description="Seconds for the whole exchange.")
    ] = 3600.0


class HealthCheck(Section, frozen=True, kw_only=True):
    """How control asks a backend whether it is well."""

    enabled: Annotated[
        bool | None,
        Meta(description="Ask it regularly [an engine or a cluster node: yes; a provider: no]."),
    ] = None
    path: Annotated[
        str,
        Meta(
            max_length=1024,
            pattern=r"^[!-~]*$(?!\n)",
            description="What is asked for; with a slash first it is the server's, without it lies "
            "below base_url; empty: /health of an engine, models of any other.",
        ),
    ] = ""
    interval_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="Seconds between two questions.")
    ] = 5.0
    timeout_s: Annotated[
        float, Meta(gt=0, le=300, description="Seconds an answer may take; none is a bad one.")
    ] = 2.0
    rise: Annotated[
        int, Meta(ge=1, le=100, description="Good answers in a row after which it is up again.")
    ] = 1
    fall: Annotated[
        int, Meta(ge=1, le=100, description="Bad answers in a row after which it is down.")
    ] = 3


def read_secret(raw: object, env: Mapping[str, str], base: Path | None) -> Secret:
    """Resolve a secret as written in a config; raises ``ValueError`` without naming its value.

    ``raw`` is a string, ``{env = NAME}``, ``{file = PATH}`` (relative to ``base``) or
    ``{client = true}``.
    """
    if isinstance(raw, str):
        return Secret(_usable(raw, "the secret"))
    if isinstance(raw, Secret):
        return raw
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise ValueError('expected a string, {env = "NAME"}, {file = "PATH"} or {client = true}')
    ((source, name),) = raw.items()
    if source == "client" and name is True:
        return Secret.forwarded()
    if source == "env" and isinstance(name, str):
        if name not in env:
            raise ValueError(f"environment variable {name} is not set")
        return Secret(_usable(env[name], f"environment variable {name}"), "env", name)
    if source == "file" and isinstance(name, str):
        return Secret(_usable(_file_text(name, base), f"secret file {name}"), "file", name)
    raise ValueError(f"{source!r} is no source of a secret; use env, file or client")


def _file_text(name: str, base: Path | None) -> str:
    path = Path(name).expanduser()
    if base is not None and not path.is_absolute():
        path = base / path
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_FILE_BYTES + 1)
        if len(data) > SECRET_FILE_BYTES:
            raise ValueError(f"secret file {name} is over {SECRET_FILE_BYTES} bytes")
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"secret file {name} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"secret file {name}: {error.strerror}") from None


def _usable(value: str, what: str) -> str:
    value = value.strip()
    if not value:
        raise ValueError(f"{what} is empty")
    if not value.isprintable():
        raise ValueError(f"{what} holds control characters")
    return value


_METADATA_NAMES = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
        "metadata.azure.com",
        "metadata.packet.net",
    }
)
_METADATA_NETS = tuple(
    ipaddress.ip_network(net)
    for net in (
        "169.254.0.0/16",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "fe80::/10",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "0.0.0.0/32",
        "::/128",
    )
)
_URL = re.compile(r"(https?)://([^/?#\s]+)(/[^?#\s]*)?")


def check_url(url: str) -> tuple[str, int]:
    """Check an upstream URL from the operator's file; answer its host and port.

    Raises ``ValueError`` for another scheme, credentials, a query, or a metadata address.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("expected http:// or https://, a host and a path, without ? or #")
    scheme, authority, _ = match.groups()
    if "@" in authority:
        raise ValueError("credentials do not belong in a URL; use api_key")
    host, port = _host_port(authority, 443 if scheme == "https" else 80)
    if host.rstrip(".").lower() in _METADATA_NAMES or _is_metadata(host):
        raise ValueError("metadata and unspecified addresses are refused")
    return host, port


def _host_port(authority: str, default: int) -> tuple[str, int]:
    host, colon, port = authority.rpartition(":")
    if authority.startswith("[") and authority.endswith("]"):
        host, colon = authority, ""
    elif not colon:
        host = authority
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ValueError("the port is not a number from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host:
        raise ValueError("the host is missing")
    return host, int(port) if colon else default


def address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an address in any form ``connect`` takes (decimal, octal, mapped), or ``None``."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):  # a NUL byte is the latter
            return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _is_metadata(host: str) -> bool:
    found = address(host)
    return found is not None and any(found in net for net in _METADATA_NETS)


def is_loopback(host: str) -> bool:
    """Whether a bind or upstream host stays on this machine."""
    found = address(host)
    return host.lower() == "localhost" if found is None else found.is_loopback
