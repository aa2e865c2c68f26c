"""Which client a trusted proxy speaks for.

The list a proxy hands on is read from its right end: each address is believed as long as the one
that named it is a proxy of ours, so the first address outside is the client, whatever it claimed.

Invariants: what an untrusted peer sends is never believed; two header fields that disagree are
both ignored, because a proxy that writes the one passes on a forged other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

MAX_HOPS = 32
_MEMO_CAP = 1024


class TrustedProxies:
    """The networks of ``[server] trusted_proxies``."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Networks as checked by the config: addresses, or CIDR blocks."""
        self._networks = tuple(ip_network(n, strict=False) for n in networks)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._networks)

    def client(self, headers: Mapping[bytes, bytes]) -> str:
        """The address the headers name, if a trusted proxy sent them; empty for none."""
        listed = headers.get(b"x-forwarded-for")
        standard = headers.get(b"forwarded")
        first = "" if listed is None else self._outermost(listed.split(b","))
        if standard is None:
            return first
        second = self._outermost([_for(element) for element in standard.split(b",")])
        return second if listed is None or first == second else ""

    def peer(self, direct: str, client: str) -> str:
        """Who a request is from: ``client`` if the connection is a trusted proxy's."""
        trusted = self._known.get(direct)
        if trusted is None:
            address = _address(direct)
            trusted = address is not None and self._inside(address)
            if len(self._known) >= _MEMO_CAP:
                self._known.clear()
            self._known[direct] = trusted
        return client if trusted and client else direct

    def _outermost(self, entries: list[bytes]) -> str:
        found = ""
        for entry in reversed(entries[-MAX_HOPS:]):
            address = _address(entry.decode("latin-1").strip().strip('"'))
            if address is None:
                break
            found = str(address)
            if not self._inside(address):
                break
        return found

    def _inside(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def _for(element: bytes) -> bytes:
    """The ``for`` parameter of one ``Forwarded`` element (RFC 7239 §4)."""
    for pair in element.split(b";"):
        name, _, value = pair.partition(b"=")
        if name.strip().lower() == b"for":
            return value
    return b""


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address with or without brackets and port; an IPv4 one in IPv6 clothes is unwrapped."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
