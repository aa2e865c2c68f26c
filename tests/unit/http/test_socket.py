"""What a WebSocket handshake must be, and whose pages may make one."""

from __future__ import annotations

import base64

import pytest

from tpo_mp.errors import TpoError
from tpo_mp.http.head import Head
from tpo_mp.http.policy import Policy
from tpo_mp.http.socket import check_upgrade

KEY = base64.b64encode(bytes(16))


def head(**changes: bytes | None) -> Head:
    """A good handshake but for the changes."""
    found = Head()
    headers = {
        "host": b"gateway:8080", "connection": b"keep-alive, Upgrade", "upgrade": b"websocket",
        "sec-websocket-version": b"13", "sec-websocket-key": KEY,
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    found.headers = {name.encode(): v for name, v in headers.items() if v is not None}
    return found


def refusal(head: Head, policy: Policy | None = None) -> int:
    """The status of its refusal, 0 for none."""
    try:
        check_upgrade(head, policy)
    except TpoError as refused:
        return refused.status
    return 0


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 0),
        ({"connection": b"keep-alive"}, 400),
        ({"connection": None}, 400),
        ({"sec_websocket_version": b"8"}, 426),
        ({"sec_websocket_key": b""}, 400),
        ({"sec_websocket_key": base64.b64encode(bytes(15))}, 400),
        ({"sec_websocket_key": b"*" * 24}, 400),
    ],
)
def test_handshake_is_checked(changes: dict[str, bytes | None], status: int) -> None:
    """Before anything is upgraded."""
    assert refusal(head(**changes)) == status


@pytest.mark.parametrize(
    ("origin", "alone", "allowing"),
    [
        (b"http://gateway:8080", 0, 0),
        (b"https://GATEWAY:8080", 0, 0),
        (b"http://gateway:8081", 403, 403),
        (b"http://gateway", 403, 403),
        (b"https://app.example", 403, 0),
        (b"https://app.example.evil", 403, 403),
        (b"null", 403, 403),
        (b"", 403, 403),
        (b"http://[", 403, 403),
        (b"gateway:8080", 403, 403),
    ],
)
def test_origins_follow_cors(origin: bytes, alone: int, allowing: int) -> None:
    """Our own pages, and those that CORS lets read."""
    assert refusal(head(origin=origin)) == alone
    assert refusal(head(origin=origin), Policy(origins=["https://app.example"])) == allowing


def test_any_origin_means_any() -> None:
    """But not together with credentials, as with CORS; and hosts alone allow nobody."""
    foreign = head(origin=b"https://x.example")
    assert refusal(foreign, Policy(origins=["*"])) == 0
    assert refusal(foreign, Policy(origins=["*"], credentials=True)) == 403
    assert refusal(foreign, Policy(hosts=["gateway"])) == 403


def test_old_http_cannot_upgrade() -> None:
    """Version 1.0 has no such thing."""
    old = head()
    old.version_10 = True
    assert refusal(old) == 400
