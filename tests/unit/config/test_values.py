"""Secrets never show; URLs of metadata services are refused in every spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpo_mp.config.values import Secret, check_url, is_loopback, read_secret


def test_secret_comes_from_the_environment() -> None:
    """The value is the variable's, the reference stays visible."""
    secret = read_secret({"env": "KEY"}, {"KEY": " value \n"}, None)
    assert (secret.reveal(), secret.shown()) == ("value", {"env": "KEY"})


def test_secret_comes_from_a_file_beside_the_config(tmp_path: Path) -> None:
    """Relative paths start at the config's folder; a trailing newline is not part of it."""
    (tmp_path / "key").write_text("value\n")
    secret = read_secret({"file": "key"}, {}, tmp_path)
    assert (secret.reveal(), secret.shown()) == ("value", {"file": "key"})


def test_literal_secret_shows_as_stars() -> None:
    """A literal has no reference to show."""
    assert read_secret("value", {}, None).shown() == "***"


def test_callers_own_secret_has_no_value() -> None:
    """It is forwarded, not kept."""
    secret = read_secret({"client": True}, {}, None)
    assert (secret.from_client, secret.reveal()) == (True, "")


def test_secret_never_shows_its_value() -> None:
    """Neither a log line nor a traceback may hold it."""
    for secret in (Secret("hidden"), Secret("hidden", "env", "KEY")):
        assert "hidden" not in f"{secret} {secret!r} {[secret]}"


@pytest.mark.parametrize(
    ("raw", "env", "reason"),
    [
        ({"env": "NONE"}, {}, "environment variable NONE is not set"),
        ({"env": "KEY"}, {"KEY": " "}, "is empty"),
        ({"env": "KEY"}, {"KEY": "a\r\nb: c"}, "control characters"),
        ({"file": "none"}, {}, "No such file"),
        ({"vault": "x"}, {}, "no source of a secret"),
        ({"client": False}, {}, "no source of a secret"),
        ({"env": "A", "file": "B"}, {}, "expected a string"),
        (7, {}, "expected a string"),
    ],
)
def test_unusable_secret_is_refused(
    tmp_path: Path, raw: object, env: dict[str, str], reason: str
) -> None:
    """The message says why, never what."""
    with pytest.raises(ValueError, match=reason):
        read_secret(raw, env, tmp_path)


def test_secret_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """A wrong path to a large file does not fill the memory."""
    (tmp_path / "key").write_bytes(b"x" * 70_000)
    with pytest.raises(ValueError, match="is over"):
        read_secret({"file": "key"}, {}, tmp_path)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "169.254.170.2", "[fd00:ec2::254]", "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518",
        "metadata.google.internal", "METADATA.google.internal.", "100.100.100.200", "0.0.0.0",
        "[::]", "[fe80::1]", "0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("port", ["", ":80", ":8080"])
def test_metadata_address_is_refused_in_every_spelling(host: str, port: str) -> None:
    """Cloud credentials are no model server."""
    with pytest.raises(ValueError, match="metadata"):
        check_url(f"http://{host}{port}/v1")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://api.openai.com/v1", ("api.openai.com", 443)),
        ("http://127.0.0.1:8000/v1", ("127.0.0.1", 8000)),
        ("http://[::1]:8000", ("::1", 8000)),
        ("http://[::1]/v1", ("::1", 80)),
        ("http://10.0.1.10:8000/v1/", ("10.0.1.10", 8000)),
    ],
)
def test_operators_url_is_trusted(url: str, place: tuple[str, int]) -> None:
    """Private and loopback addresses are where model servers live."""
    assert check_url(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1", "host/v1", "http://", "http://host/v1?key=1", "http://host/v1#x",
        "http://user:pass@host/v1", "http://host:0/v1", "http://host:99999/", "http://ho st/",
        "http://:80/", "http://host:8o/", "", "http://host/v1\n",
    ],
)  # fmt: skip
def test_malformed_url_is_refused(url: str) -> None:
    """Schemes, credentials, queries and ports are checked."""
    with pytest.raises(ValueError, match=r"expected|credentials|port|host"):
        check_url(url)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
        ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
        ("example.com", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_public(host: str, loopback: bool) -> None:
    """What stays on this machine needs no keys."""
    assert is_loopback(host) is loopback
