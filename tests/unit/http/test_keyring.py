"""Whom a request speaks for: which headers carry a key, and who may use which route."""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns

import pytest

from tpo_mp.config.api_keys import digest, new_key
from tpo_mp.errors import PolicyViolation, Unauthorized
from tpo_mp.http.endpoints import Access, Endpoint, EndpointTable
from tpo_mp.http.head import Head, HeadMemo
from tpo_mp.http.keyring import Keyring
from tpo_mp.types import NOBODY, Principal

USER = Principal("acme", "team-a", "standard")
ADMIN = Principal("ops", "root", "standard", admin=True)
PEPPER = "spice"
KEYRING = Keyring(
    [(digest(b"user-key-of-16-or-more", PEPPER.encode()), USER),
     (digest(b"admin-key-of-16-or-more", PEPPER.encode()), ADMIN)],
    PEPPER,
)  # fmt: skip


def _endpoint(path: str, access: Access) -> Endpoint:
    """A route that answers nothing."""
    return Endpoint("GET", path, lambda _: None, "openai", access=access)


TABLE = EndpointTable(
    [_endpoint("/open", "open"), _endpoint("/key", "key"), _endpoint("/admin", "admin"),
     Endpoint("GET", "/plain", lambda _: None, "openai")]
)  # fmt: skip


def head(path: str, **headers: str) -> Head:
    """Parse a request with these headers; ``_`` is a dash."""
    lines = [f"GET {path} HTTP/1.1", "host: h"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return HeadMemo(TABLE, 1 << 20, (KEYRING,)).parse("\r\n".join([*lines, "", ""]).encode())


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer user-key-of-16-or-more"},
        {"authorization": "bearer  user-key-of-16-or-more"},
        {"x_api_key": "user-key-of-16-or-more"},
        {"api_key": "user-key-of-16-or-more"},
        {"x_admin_key": "user-key-of-16-or-more"},
        {"authorization": "Bearer sk-of-an-upstream", "x_api_key": "user-key-of-16-or-more"},
    ],
)
def test_a_key_is_known_in_every_header_sdks_use(headers: dict[str, str]) -> None:
    """Beside it an upstream's credential may travel."""
    found = head("/key", **headers)
    assert found.refusal is None
    assert found.principal == USER
    assert found.keyed.decode() in {name.replace("_", "-") for name in headers}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "missing_api_key"),
        ({"authorization": "Bearer "}, "missing_api_key"),
        ({"authorization": "Bearer user-key-of-16-or-mor"}, "invalid_api_key"),
        ({"x_api_key": "user-key-of-16-or-more "[::-1].strip()}, "invalid_api_key"),
    ],
)
@pytest.mark.parametrize("path", ["/key", "/plain", "/admin", "/unheard-of"])
def test_without_a_known_key_nothing_but_open_routes(
    path: str, headers: dict[str, str], reason: str
) -> None:
    """A route that says nothing of access asks for a key; so does one that does not exist."""
    found = head(path, **headers)
    assert isinstance(found.refusal, Unauthorized)
    assert (found.refusal.status, found.refusal.reason) == (401, reason)
    assert found.principal is NOBODY
    assert head("/open", **headers).refusal is None


def test_admin_routes_take_an_admins_key() -> None:
    """Another key is known, and not enough."""
    refused = head("/admin", x_api_key="user-key-of-16-or-more").refusal
    assert isinstance(refused, PolicyViolation)
    assert (refused.status, refused.reason) == (403, "admin_key_required")
    allowed = head("/admin", x_admin_key="admin-key-of-16-or-more")
    assert allowed.refusal is None
    assert allowed.principal.admin


def test_a_guessers_heads_are_not_remembered() -> None:
    """They would push out those that come again; a known caller's head is parsed once."""
    memo = HeadMemo(TABLE, 1 << 20, (KEYRING,))
    bad = b"GET /key HTTP/1.1\r\nhost: h\r\nx-api-key: guess-%d\r\n\r\n"
    for number in range(3):
        memo.parse(bad % number)
        assert memo.get(bad % number) is None
    good = b"GET /key HTTP/1.1\r\nhost: h\r\nx-api-key: user-key-of-16-or-more\r\n\r\n"
    assert memo.get(good) is None
    assert memo.parse(good) is memo.get(good)


def test_a_guess_takes_as_long_whatever_of_it_is_right() -> None:
    """Twenty thousand: a name that is known with a wrong secret, and one that nobody has."""
    known = new_key("team-a")
    ring = Keyring([(digest(known.encode(), PEPPER.encode()), USER)], PEPPER)
    right, wrong = known[: len(known) // 2], new_key("team-b")[: len(known) // 2]
    took: tuple[list[int], list[int]] = ([], [])
    parser = HeadMemo(TABLE, 1 << 20)
    for number in range(20_000):
        guess = f"{(right, wrong)[number % 2]}{number:032d}"
        head = parser.parse(f"GET /key HTTP/1.1\r\nhost: h\r\nx-api-key: {guess}\r\n\r\n".encode())
        began = perf_counter_ns()
        ring.apply(head)
        took[number % 2].append(perf_counter_ns() - began)
        assert head.refusal is not None
    medians = [median(one) for one in took]
    assert abs(medians[0] - medians[1]) < 5_000, f"ns: {medians}"
