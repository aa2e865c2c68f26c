"""Gateways that the tests of several clients share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.configs import BOTH_FAMILIES, WITH_A_MAPPED_NAME
from tests.support.gateway import Gateway
from tests.support.shards import Shards, each_shard, session_on
from tests.support.tiny_model import MlxServer
from tests.support.toml import ECHO, NO_CACHE, NO_RETRIES, backend
from tests.support.upstream import Upstream


@pytest.fixture(scope="module")
def origin() -> Iterator[Upstream]:
    """What the gateways of a module ask; it counts."""
    with Upstream() as running:
        yield running


@pytest.fixture
def at_rest(origin: Upstream) -> Iterator[None]:
    """The test begins and ends with nothing at the module's upstream."""
    with origin.at_rest():
        yield


@pytest.fixture(scope="session")
def two_shards(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """A gateway of two shards before an upstream, for all modules."""
    with Upstream() as upstream:
        config = ECHO + backend("up", upstream.base_url)
        with Gateway(short_tmp / "shards", config=config, workers=2) as gateway:
            yield gateway, upstream


@pytest.fixture(scope="session")
def homes(two_shards: tuple[Gateway, Upstream]) -> tuple[str, str]:
    """A session on each of them."""
    url = two_shards[0].url
    return session_on(url, 0), session_on(url, 1)


@pytest.fixture
def shards(two_shards: tuple[Gateway, Upstream], homes: tuple[str, str]) -> Iterator[Shards]:
    """With connections of one test: between two tests they might idle until they are closed."""
    gateway, upstream = two_shards
    with each_shard(gateway.url) as clients:
        yield Shards(gateway, upstream, clients, homes)


@pytest.fixture(scope="session")
def engine_gateway(mlx: MlxServer, short_tmp: Path) -> Iterator[Gateway]:
    """A gateway in front of the real engine, under its own name and a mapped one, ``tiny``."""
    config = WITH_A_MAPPED_NAME.format(base_url=mlx.base_url, model=mlx.model)
    with Gateway(short_tmp / "engine", config=config, workers=2) as gateway:
        yield gateway


def families(folder: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """A two-shard gateway with a backend of each family, both at one upstream."""
    with Upstream() as upstream:
        config = NO_CACHE + NO_RETRIES + BOTH_FAMILIES.format(base_url=upstream.base_url)
        with Gateway(folder, config=config, workers=2) as gateway:
            yield gateway, upstream


@pytest.fixture(scope="session")
def both_families(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """One for all tests that do not count."""
    yield from families(short_tmp / "scripted")


@pytest.fixture
def scripted(both_families: tuple[Gateway, Upstream]) -> tuple[Gateway, Upstream]:
    """A gateway whose two backends are one upstream that says what it is told."""
    both_families[1].forget()  # what the test before left behind
    return both_families
