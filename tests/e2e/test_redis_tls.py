"""A Redis behind TLS: shared as any other, and left alone, with a reason, when it is another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.support.certificates import Authority, available
from tests.support.gateway import Gateway
from tests.support.raw import ask, chat
from tests.support.redis import RedisServer
from tests.support.toml import NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import free_port, unhurried, wait_for

pytestmark = pytest.mark.skipif(not available(), reason="openssl is not installed")
LOUD = {"PYTHONWARNINGS": "always::ResourceWarning"}


@pytest.fixture(scope="module")
def authority(short_tmp: Path) -> Authority:
    """Who signed the server's certificate."""
    return Authority(short_tmp / "redis-ca")


@pytest.fixture(scope="module")
def port() -> int:
    """Where the server speaks TLS."""
    return free_port()


@pytest.fixture(scope="module")
def redis(short_tmp: Path, authority: Authority, port: int) -> Iterator[RedisServer]:
    """A server that asks no client for a certificate."""
    pair = authority.sign("redis")
    options = ("--tls-port", f"{port}", "--tls-cert-file", f"{pair}.pem", "--tls-key-file",
               f"{pair}.key", "--tls-ca-cert-file", f"{authority.folder / 'ca.pem'}",
               "--tls-auth-clients", "no")  # fmt: skip
    with RedisServer(short_tmp / "tls-redis", *options) as running:
        yield running


def config(origin: Upstream, port: int, ca_file: Path) -> str:
    """What a gateway is told."""
    url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={ca_file}"
    told = section("[distributed]", redis_url=url, cache_wait_s=1.0)
    return backend("up", origin.base_url, "*") + NO_RETRIES + told


def way(gateway: Gateway, text: str) -> str:
    """How one chat at temperature 0 was answered."""
    reply = gateway.ask("/v1/chat/completions", chat(text, "up-1", temperature=0))
    assert reply.status == 200, reply.body
    return reply.headers["x-tpo-cache"]


def degraded(gateway: Gateway) -> list[str]:
    """What a gateway lacks."""
    missing: list[str] = ask(gateway.ops, "/ready").json()["degraded"]
    return missing


def test_two_gateways_share_answers_over_tls(
    short_tmp: Path, origin: Upstream, authority: Authority, redis: RedisServer, port: int
) -> None:
    """What one was answered the other knows; and nothing of a connection is left behind."""
    told = config(origin, port, authority.folder / "ca.pem")
    folder = short_tmp / "tls-tier"
    with (
        Gateway(folder / "1", config=told, env=LOUD) as one,
        Gateway(folder / "2", config=told, env=LOUD) as two,
    ):
        numbers = count()

        def shared() -> None:
            """A machine may stand still for longer than Redis is waited for."""
            for gateway in (one, two):
                wait_for(lambda g=gateway: not degraded(g), 20, "Redis to be reached")  # type: ignore[misc]
            text, before = f"over tls {next(numbers)}", set(redis.ask("KEYS", "tpo:1:a:*"))
            assert way(one, text) == "miss"
            wait_for(lambda: set(redis.ask("KEYS", "tpo:1:a:*")) - before, 4, "it in Redis")
            assert way(two, text) == "hit"

        unhurried(shared, 0.5)
        redis.kill()
        wait_for(lambda: degraded(two) or way(two, "lost"), 20, "Redis to be missed")
        wait_for(lambda: degraded(two), 20, "Redis to be missed")
        redis.start()
        wait_for(lambda: not degraded(two), 20, "Redis to be reached again")
    for gateway in (one, two):
        assert not leaks(gateway)


def test_a_server_that_another_authority_signed_is_not_used(
    short_tmp: Path, origin: Upstream, redis: RedisServer, port: int
) -> None:
    """The log says why, and calls are answered without it."""
    other = Authority(short_tmp / "other-ca")
    assert redis.ask("PING")
    told = config(origin, port, other.folder / "ca.pem")
    said = ""
    for number in range(4):
        with Gateway(short_tmp / f"tls-other-{number}", config=told, env=LOUD) as gateway:
            said = wait_for(lambda g=gateway: away(g), 20, "why Redis is away")  # type: ignore[misc]
            assert degraded(gateway)
            assert way(gateway, f"without {number}") == "miss"
        assert "Traceback" not in gateway.stderr
        assert not leaks(gateway)
        if "Timeout" not in said:  # of a machine that stood still: the reason is told once
            break
    assert "certificate verify failed" in said, said


def leaks(gateway: Gateway) -> list[str]:
    """Connections to Redis that nobody closed; one to the upstream is kept to the end."""
    unclosed = [line for line in gateway.stderr.splitlines() if "ResourceWarning" in line]
    return unclosed[1:]


def away(gateway: Gateway) -> str:
    """What the log says of a Redis that is away."""
    lines = gateway.stderr.splitlines()
    return next((line for line in lines if "redis_away" in line), "")
