"""Forwarded headers: believed from proxies of ours, and only as far as those can know."""

from __future__ import annotations

import pytest

from tpo_mp.http.peers import MAX_HOPS, TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])


@pytest.mark.parametrize(
    ("listed", "client"),
    [
        (b"203.0.113.9", "203.0.113.9"),
        (b"6.6.6.6, 203.0.113.9", "203.0.113.9"),
        (b"6.6.6.6, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        (b"203.0.113.9,10.1.2.3,192.0.2.7", "203.0.113.9"),
        (b"10.1.2.3, 10.1.2.4", "10.1.2.3"),
        (b"203.0.113.9:4711", "203.0.113.9"),
        (b"[2001:db8::1]:443", "2001:db8::1"),
        (b"2001:db8::1, fd00::5", "2001:db8::1"),
        (b"::ffff:203.0.113.9", "203.0.113.9"),
        (b"6.6.6.6, unknown", ""),
        (b"6.6.6.6, unknown, 10.1.2.3", "10.1.2.3"),
        (b"<script>", ""),
        (b"", ""),
        (b",", ""),
    ],
)
def test_first_address_outside_is_the_client(listed: bytes, client: str) -> None:
    """Read from the right; what stands left of a stranger is the stranger's word."""
    assert PROXIES.client({b"x-forwarded-for": listed}) == client


@pytest.mark.parametrize(
    ("standard", "client"),
    [
        (b"for=203.0.113.9", "203.0.113.9"),
        (b"For=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9"),
        (b'proto=https; for="[2001:db8::1]:4711"', "2001:db8::1"),
        (b"for=6.6.6.6, for=203.0.113.9, for=10.1.2.3", "203.0.113.9"),
        (b"for=_hidden, for=10.1.2.3", "10.1.2.3"),
        (b"for=unknown", ""),
        (b"proto=https", ""),
    ],
)
def test_standard_header_is_read_alike(standard: bytes, client: str) -> None:
    """RFC 7239, quoted or not."""
    assert PROXIES.client({b"forwarded": standard}) == client


def test_headers_that_disagree_are_both_ignored() -> None:
    """A proxy writes one of them; the other may be forged."""
    one, other = b"203.0.113.9", b"for=6.6.6.6"
    assert PROXIES.client({b"x-forwarded-for": one, b"forwarded": other}) == ""
    assert PROXIES.client({b"x-forwarded-for": one, b"forwarded": b"for=" + one}) == one.decode()


def test_endless_lists_are_read_from_their_end() -> None:
    """A bounded number of hops."""
    listed = b", ".join([b"203.0.113.9", *[b"10.0.0.1"] * (MAX_HOPS + 5)])
    assert PROXIES.client({b"x-forwarded-for": listed}) == "10.0.0.1"


@pytest.mark.parametrize("direct", ["10.9.9.9", "::ffff:10.9.9.9", "fd00::1", "192.0.2.7"])
def test_proxy_of_ours_names_the_client(direct: str) -> None:
    """By address, block, or an IPv4 address in IPv6 clothes."""
    assert PROXIES.peer(direct, "203.0.113.9") == "203.0.113.9"
    assert PROXIES.peer(direct, "") == direct


@pytest.mark.parametrize("direct", ["203.0.113.1", "2001:db8::2", "", "not an address"])
def test_stranger_names_nobody(direct: str) -> None:
    """Its own address is what counts."""
    assert PROXIES.peer(direct, "203.0.113.9") == direct


def test_memory_of_peers_is_bounded() -> None:
    """A client with many addresses fills nothing."""
    proxies = TrustedProxies(["10.0.0.0/8"])
    for i in range(3000):
        assert proxies.peer(f"198.51.{i >> 8}.{i & 255}", "1.2.3.4") != "1.2.3.4"
    assert len(proxies._known) <= 1024
