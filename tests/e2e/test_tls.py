"""TLS on the main port: both lanes, streams, renewal of the certificate."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import StartGateway, require
from tests.support import certificates
from tests.support.certificates import Authority, common_name
from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.messages import BODY, CHAT, CHUNKED, LENGTH, chunked, get, post
from tests.support.raw import ClosedEarlyError, RawClient, chat
from tests.support.toml import section
from tests.support.wait import wait_for
from tpo_mp.config.certificate import expires_at
from tpo_mp.config.sections import TlsSection


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority and three pairs, of two kinds."""
    require(certificates.available(), "openssl")
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.sign("first", key="rsa")
    made.sign("second", days=20)
    return made


class Pair:
    """The files a gateway is configured with."""

    def __init__(self, folder: Path, authority: Authority, name: str) -> None:
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self._authority = authority
        self.install(name)

    def install(self, name: str) -> None:
        """Renew."""
        self._authority.install(name, self.cert, self.key)

    @property
    def toml(self) -> str:
        """The section that names them."""
        return section("[server.tls]", cert_file=str(self.cert), key_file=str(self.key))


def connect(gateway: Gateway, authority: Authority) -> RawClient:
    """A client that trusts the authority."""
    return RawClient(gateway.url, tls=authority.client())


def shown(gateway: Gateway, authority: Authority) -> str:
    """The name in the certificate of a new handshake."""
    with connect(gateway, authority) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        return common_name(client.sock)


@pytest.fixture(scope="module", params=["native", "portable"])
def secure(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory,
    short_tmp: Path,
) -> Iterator[Gateway]:  # fmt: skip
    """Two shards behind TLS, with the sockets of this system and with shared ones."""
    pair = Pair(tmp_path_factory.mktemp("pair"), authority, "first")
    env = {"TPO_PORTABLE": "1"} if request.param == "portable" else {}
    folder = short_tmp / f"tls-{request.param}"
    with Gateway(folder, config=pair.toml, workers=2, env=env) as gateway:
        yield gateway


def test_ready_line_and_status_say_https(secure: Gateway) -> None:
    """The main port's; operators look without."""
    assert secure.url.startswith("https://127.0.0.1:")
    assert secure.ops.startswith("http://")
    assert secure.status()["url"] == secure.url
    assert f"url: {secure.url}" in secure.tpo("status").stdout


def test_fast_lane_serves_behind_tls(secure: Gateway, authority: Authority) -> None:
    """Unary, streamed, pipelined, in pieces, on one connection."""
    with connect(secure, authority) as client:
        for i in range(3):
            reply = client.post_json(CHAT, chat(f"hello {i}"))
            assert f"hello {i}" in reply.json()["choices"][0]["message"]["content"]
            assert client.post_json(CHAT, chat("a b", stream=True)).events[-1] == b"[DONE]"
        client.send(post(LENGTH) * 5)
        assert [client.read_reply().status for _ in range(5)] == [200] * 5
        raw = post(LENGTH)
        for byte in (raw[:10], raw[10:50], raw[50:-3], raw[-3:]):
            client.send(byte)
        assert client.read_reply().status == 200
        large = client.post_json(CHAT, chat("word " * 100_000))
        assert len(large.body) > 400_000


@pytest.mark.parametrize("stream", [False, True])
def test_full_lane_serves_behind_tls(secure: Gateway, authority: Authority, stream: bool) -> None:
    """A chunked body after plain requests of the same connection."""
    body = json.dumps(chat("one two three", stream=stream)).encode()
    with connect(secure, authority) as client:
        assert client.request("GET", "/v1/models").status == 200
        client.send(post(CHUNKED, body=chunked(body)))
        reply = client.read_reply()
        assert reply.status == 200
        assert b"three" in reply.body
        assert client.closed()


def test_expecting_client_is_told_to_go_on(secure: Gateway, authority: Authority) -> None:
    """``100 Continue`` comes through, then the answer."""
    with connect(secure, authority) as client:
        client.send(post(LENGTH, b"Expect: 100-continue", body=b""))
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(BODY)
        assert client.read_reply().status == 200


def test_plain_http_gets_no_answer(secure: Gateway, authority: Authority) -> None:
    """Nor does a client that trusts others; both leave the gateway as it was."""
    with RawClient(secure.url) as client:
        client.send(post(LENGTH))
        with pytest.raises(ClosedEarlyError):
            client.read_head()
    with pytest.raises(ssl.SSLCertVerificationError):
        RawClient(secure.url, tls=ssl.create_default_context())
    assert shown(secure, authority) == "first"


def test_client_that_leaves_mid_stream_is_noticed(secure: Gateway, authority: Authority) -> None:
    """The call ends; nothing stays open."""
    with connect(secure, authority) as client:
        client.send(post(LENGTH))
        client.send(b"POST")
    wait_for(lambda: all(s["open_calls"] == 0 for s in secure.status()["slots"]), 5, "no call")


# -- renewal -------------------------------------------------------------------------------------


@pytest.fixture
def renewable(
    tmp_path: Path, authority: Authority, start_gateway: StartGateway
) -> tuple[Gateway, Pair]:
    """A gateway of the test's own, and its files."""
    pair = Pair(tmp_path, authority, "first")
    return start_gateway(config=pair.toml, workers=2), pair


def expiry(gateway: Gateway) -> float:
    """The gauge."""
    with RawClient(gateway.ops) as client:
        page = client.request("GET", "/metrics").body.decode()
    return metric(page, "tpo_tls_certificate_expires_seconds")


def test_renewed_certificate_is_shown_after_a_reload(
    renewable: tuple[Gateway, Pair], authority: Authority
) -> None:
    """By every shard, to new handshakes; old connections go on; the gauge follows."""
    gateway, pair = renewable
    tls = TlsSection(cert_file=str(pair.cert), key_file=str(pair.key))
    assert expiry(gateway) == expires_at(tls)
    with connect(gateway, authority) as old:
        assert old.request("GET", "/ready").status == 200
        pair.install("second")
        assert shown(gateway, authority) == "first"
        gateway.send_signal(signal.SIGHUP)
        wait_for(lambda: gateway.status()["config_epoch"] == 2, 10, "the reload")
        wait_for(lambda: (gateway.status()["last_reload"] or {}).get("ok"), 10, "its end")
        wait_for(gateway.adopted, 10, "both workers to have it")
        assert {shown(gateway, authority) for _ in range(16)} == {"second"}
        assert old.request("GET", "/ready").status == 200
    wait_for(lambda: expiry(gateway) == expires_at(tls), 5, "the gauge")
    killed = gateway.worker_pids()[0]
    os.kill(killed, signal.SIGKILL)
    gateway.replaced(0, killed)
    assert {shown(gateway, authority) for _ in range(16)} == {"second"}


def test_broken_pair_vetoes_the_reload(
    renewable: tuple[Gateway, Pair], authority: Authority
) -> None:
    """Another's key, then none: refused with the setting's name, and nothing changes."""
    gateway, pair = renewable
    pair.key.write_bytes((authority.folder / "second.key").read_bytes())
    refused = gateway.tpo("reload")
    assert refused.returncode == 1
    assert "server.tls.cert_file: certificate and key do not load" in refused.stderr
    pair.key.unlink()
    refused = gateway.tpo("reload")
    assert "server.tls.key_file" in refused.stderr
    assert "is missing" in refused.stderr
    assert gateway.status()["config_epoch"] == 1
    assert {shown(gateway, authority) for _ in range(8)} == {"first"}
    pair.install("second")
    assert gateway.tpo("reload").returncode == 0
    assert shown(gateway, authority) == "second"


def test_tls_is_not_turned_off_by_a_reload(
    renewable: tuple[Gateway, Pair], authority: Authority
) -> None:
    """Half a host would speak it."""
    gateway, _ = renewable
    assert gateway.config_path is not None
    gateway.config_path.write_text("")
    refused = gateway.tpo("reload")
    assert refused.returncode == 1
    assert "server.tls changes at a restart only" in refused.stderr
    assert shown(gateway, authority) == "first"


def test_a_handshake_under_way_is_ended_before_a_gateway_leaves(
    authority: Authority, tmp_path: Path, start_gateway: StartGateway
) -> None:
    """And the one request behind it is answered."""
    gateway = start_gateway(workers=2, config=Pair(tmp_path, authority, "first").toml)
    came, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client().wrap_bio(came, sent, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as sock:

        def shake() -> bool:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                return False
            return True

        assert not shake()
        sock.sendall(sent.read())
        came.write(sock.recv(1 << 16))
        gateway.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts(gateway.port), 10, "the port is closed")
        while not shake():
            came.write(sock.recv(1 << 16))
        tls.write(get())
        sock.sendall(sent.read())
        said = b""
        while b"\r\n\r\n" not in said:
            got = sock.recv(1 << 16)
            assert got, "the gateway left"
            came.write(got)
            with suppress(ssl.SSLWantReadError):
                said += tls.read(1 << 16)
        assert said.startswith(b"HTTP/1.1 200 ")
    assert gateway.wait() == 0


def accepts(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_check_names_the_missing_file(tmp_path: Path) -> None:
    """Before anything is started."""
    config = tmp_path / "tpo.toml"
    config.write_text(section("[server.tls]", cert_file=str(tmp_path / "no.pem")))
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "check", str(config)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"server.tls.cert_file: '{tmp_path / 'no.pem'}' is missing" in done.stderr
