"""Certificates of the main port: what is wrong with a pair, and which one a handshake shows."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support import certificates
from tests.support.certificates import Authority, common_name
from tpo_mp.config.certificate import expires_at, problem, server_context
from tpo_mp.config.sections import TlsSection
from tpo_mp.errors import ConfigError
from tpo_mp.worker.tls import Tls


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority with two pairs of different kinds."""
    require(certificates.available(), "openssl")
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.sign("first", key="rsa")
    made.sign("second", days=20)
    return made


def section(authority: Authority, name: str, key: str = "") -> TlsSection:
    """Name a pair; ``key`` is another key's file."""
    folder = authority.folder
    return TlsSection(
        cert_file=str(folder / f"{name}.pem"), key_file=key or str(folder / f"{name}.key")
    )


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Shake hands in memory; answer the client's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    waiting = [here, there]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
        if not waiting:
            return here
    raise AssertionError("no end of the handshake")


def test_newest_certificate_is_shown_at_once(authority: Authority) -> None:
    """Also when its key is of another kind, which a context would keep beside the old one."""
    tls = Tls(section(authority, "first"))
    assert common_name(shake(tls.context, authority.client())) == "first"
    tls.use(server_context(section(authority, "second")))
    for _ in range(3):
        assert common_name(shake(tls.context, authority.client())) == "second"
    tls.use(server_context(section(authority, "first")))
    assert common_name(shake(tls.context, authority.client())) == "first"


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_current_versions_are_spoken(
    authority: Authority, name: str, version: ssl.TLSVersion
) -> None:
    """1.2 and 1.3, with HTTP/1.1 agreed on."""
    tls = Tls(section(authority, name))
    client = authority.client()
    client.minimum_version = client.maximum_version = version
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert shake(tls.context, client).selected_alpn_protocol() == "http/1.1"


def test_sound_pair_has_no_problem(authority: Authority) -> None:
    """Nor has TLS that is off."""
    assert problem(section(authority, "first")) is None
    assert problem(TlsSection()) is None


def test_key_may_stand_in_the_certificate_file(authority: Authority) -> None:
    """One file for both."""
    both = authority.folder / "both.pem"
    first = authority.folder / "first"
    both.write_text(first.with_suffix(".pem").read_text() + first.with_suffix(".key").read_text())
    assert problem(TlsSection(cert_file=str(both))) is None


def test_each_problem_names_its_setting(authority: Authority, tmp_path: Path) -> None:
    """Missing, a directory, no certificate, another's key, an encrypted one."""
    missing = str(tmp_path / "none.pem")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    locked = authority.encrypt("first")
    folder = authority.folder
    cases = [
        (TlsSection(key_file="k"), "key_file", "without cert_file"),
        (TlsSection(cert_file=missing), "cert_file", "is missing"),
        (section(authority, "first", key=missing), "key_file", "is missing"),
        (TlsSection(cert_file=str(tmp_path)), "cert_file", "is a directory"),
        (TlsSection(cert_file=str(empty)), "cert_file", "do not load"),
        (section(authority, "first", key=str(folder / "second.key")), "cert_file", "do not load"),
        (section(authority, "first", key=str(locked)), "cert_file", "encrypted"),
    ]
    for tls, setting, why in cases:
        found = problem(tls)
        assert found is not None, tls
        assert (found[0], why in found[1]) == (setting, True), found
        if tls.cert_file:
            with pytest.raises(ConfigError, match=rf"server\.tls\.{setting}"):
                server_context(tls)


def test_expiry_is_read_from_the_file(authority: Authority, tmp_path: Path) -> None:
    """Of the server's own certificate; nothing when there is none or it is no certificate."""
    now = time.time()
    for name, days in (("first", 10), ("second", 20)):
        expires = expires_at(section(authority, name))
        assert expires is not None
        assert abs(expires - now - days * 86_400) < 600
    chain = tmp_path / "chain.pem"
    pems = [(authority.folder / name).read_text() for name in ("second.pem", "ca.pem")]
    chain.write_text("".join(pems))
    assert expires_at(TlsSection(cert_file=str(chain))) == expires_at(section(authority, "second"))
    assert expires_at(TlsSection()) is None
    (tmp_path / "bad.pem").write_text("no")
    assert expires_at(TlsSection(cert_file=str(tmp_path / "bad.pem"))) is None
