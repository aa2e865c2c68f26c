"""The description and its page, as a shard serves them."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.fake_gateway import FakeExchange, Surface
from tpo_mp.surfaces.docs_api import FEATURE

FILES = ["/docs", "/docs/page.js", "/docs/page.css"]


@pytest.fixture
def surface() -> Surface:
    """The surface on its own routes."""
    return Surface(FEATURE)


def header(exchange: FakeExchange, name: str) -> str:
    """A header line of the answer."""
    found = re.search(rf"^{name}: (.*?)\r$", exchange.extra.decode(), re.MULTILINE)
    assert found is not None, exchange.extra
    return found[1]


def test_document_describes_the_table(surface: Surface) -> None:
    """What is served is what the gateway routes."""
    exchange = surface.ask("GET", "/openapi.json")
    assert exchange.status == 200
    assert set(exchange.json()["paths"]) == {e.template for e in surface.gateway.table}


def test_alias_serves_the_same_bytes(surface: Surface) -> None:
    """One document, two paths."""
    # One loop per request here, as a future belongs to its loop.
    other = Surface(FEATURE)
    assert surface.ask("GET", "/openapi.json").answer == other.ask("GET", "/api/v1/schema").answer


@pytest.mark.parametrize("path", ["/openapi.json", *FILES])
def test_fresh_copy_is_not_sent_again(path: str) -> None:
    """The tag of an answer makes the next one 304, also in a list and as a weak tag."""
    first = Surface(FEATURE).ask("GET", path)
    etag = header(first, "etag")
    assert header(first, "cache-control") == "no-cache"
    for given in (etag, f'"x", W/{etag}', "*"):
        again = Surface(FEATURE).ask("GET", path, headers={"if-none-match": given})
        assert (again.status, again.answer) == (304, b"")
        assert header(again, "etag") == etag
    stale = Surface(FEATURE).ask("GET", path, headers={"if-none-match": '"x"'})
    assert stale.status == 200


@pytest.mark.parametrize("path", FILES)
def test_page_is_confined(surface: Surface, path: str) -> None:
    """Nothing from elsewhere is loaded, framed or executed, and no markup is made of strings."""
    exchange = surface.ask("GET", path)
    policy = header(exchange, "content-security-policy")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    text = exchange.answer.decode()
    assert not re.search(r"https?://(?!127\.0\.0\.1:8080)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert not re.search(r"<script(?! src=\"/docs/)|<[^>]+ on\w+=|style=", text)


def test_page_names_only_files_that_are_served(surface: Surface) -> None:
    """Each address in the page is a route."""
    text = surface.ask("GET", "/docs").answer.decode()
    named = set(re.findall(r"(?:src|href)=\"(/[^\"]*)\"", text))
    assert named <= {e.template for e in surface.gateway.table}
    assert named >= {"/docs/page.js", "/docs/page.css", "/openapi.json"}


def test_document_is_small_enough_to_send(surface: Surface) -> None:
    """A page that reads it must not wait for megabytes."""
    assert len(json.dumps(surface.ask("GET", "/openapi.json").json())) < 1 << 20
