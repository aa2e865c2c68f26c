"""The browsable page in a real browser: it reads the gateway's own description and calls it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.conftest import require
from tests.support import browser as browsers
from tests.support.browser import Browser
from tests.support.gateway import Gateway


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for this file."""
    require(browsers.find() is not None, "chromium")
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def page(browser: Browser, echo_gateway: Gateway) -> Browser:
    """The page, loaded afresh."""
    browser.open("about:blank")
    browser.events.clear()
    browser.open(f"{echo_gateway.url}/docs")
    browser.until("document.querySelectorAll('.route').length > 20")
    return browser


def unfold(page: Browser, operation: str) -> None:
    """Open one route."""
    page.value(f"document.getElementById('{operation}').open = true")
    page.until(f"document.querySelector('#{operation} form') !== null")


def send(page: Browser, operation: str) -> str:
    """Press its button and wait for the whole answer."""
    form = f"document.querySelector('#{operation} form')"
    page.value(f"{form}.requestSubmit()")
    page.until(f"{form}.querySelector('.status').textContent.includes(' ms')")
    return str(page.value(f"{form}.querySelector('.answer').textContent"))


def test_page_lists_every_route_and_fetches_nothing_else(
    page: Browser, echo_gateway: Gateway
) -> None:
    """All of the table, from this gateway alone, with no error and no breach of its policy."""
    paths = echo_gateway.ask("/openapi.json").json()["paths"]
    shown = page.value("[...document.querySelectorAll('.route')].map(r => r.id).sort()")
    told = [one["operationId"] for methods in paths.values() for one in methods.values()]
    assert shown == sorted(told)
    assert page.value("document.querySelectorAll('section h2').length") >= 4
    asked = [url for url in page.requested() if not url.startswith(("data:", "about:"))]
    assert asked
    assert all(url.startswith(echo_gateway.url) for url in asked), asked
    assert page.complaints() == []


def test_every_route_unfolds(page: Browser) -> None:
    """Parameters, fields, answers and a form, whatever the route has."""
    page.value("document.querySelectorAll('.route').forEach(r => { r.open = true; })")
    page.until(
        "[...document.querySelectorAll('.route')].every(r => r.querySelector('form') !== null)"
    )
    chat = page.value("document.querySelector('#post_v1_chat_completions').textContent")
    assert "temperature" in chat
    assert "x-tpo-deadline-ms" in chat
    assert "curl -s http://127.0.0.1" in chat
    assert page.complaints() == []


def test_form_sends_and_shows_the_answer(page: Browser) -> None:
    """The example is answered as it stands; another body gets another answer."""
    unfold(page, "post_v1_prompt")
    assert json.loads(send(page, "post_v1_prompt"))["result"] == "hello"
    field = "document.querySelector('#post_v1_prompt textarea')"
    text = "<img src=x onerror=alert(1)> <b>bold</b>"
    page.value(f"{field}.value = JSON.stringify({{prompt: {json.dumps(text)}}})")
    assert json.loads(send(page, "post_v1_prompt"))["result"] == text
    assert page.value("document.querySelectorAll('#post_v1_prompt img, pre b').length") == 0


def test_form_shows_streams_and_refusals(page: Browser) -> None:
    """Events as text; an error body with its status."""
    unfold(page, "post_api_v1_stream")
    assert "event: done" in send(page, "post_api_v1_stream")
    unfold(page, "post_v1_chat_completions")
    page.value("document.querySelector('#post_v1_chat_completions textarea').value = '{'")
    refused = json.loads(send(page, "post_v1_chat_completions"))
    assert refused["error"]["type"] == "invalid_request_error"
    status = page.value("document.querySelector('#post_v1_chat_completions .status').textContent")
    assert status.startswith("400")


def test_form_fills_in_paths_queries_and_headers(page: Browser) -> None:
    """Each parameter goes where it belongs."""
    unfold(page, "get_api_v1_result_id")
    form = "document.querySelector('#get_api_v1_result_id form')"
    page.value(f"{form}.elements['id'].value = 'a b/c'")
    page.value(f"{form}.elements['wait'].value = '0.5'")
    page.value(f"{form}.elements['x-request-id'].value = 'from-the-page'")
    refused = json.loads(send(page, "get_api_v1_result_id"))["error"]
    assert refused["request_id"] == "from-the-page"
    assert page.requested()[-1].endswith("/api/v1/result/a%20b%2Fc?wait=0.5")


def test_search_hides_what_does_not_match(page: Browser) -> None:
    """By words of path and sentence."""
    page.value(
        "(() => { const f = document.getElementById('find'); f.value = 'dead letter';"
        " f.dispatchEvent(new Event('input')); })()"
    )
    shown = "[...document.querySelectorAll('.route:not([hidden])')].map(r => r.id)"
    every = page.value("[...document.querySelectorAll('.route')].map(r => r.id)")
    wanted = {one for one in every if "dlq" in one}
    assert len(wanted) == 8 < len(every)
    assert set(page.value(shown)) == wanted


def test_address_of_a_route_opens_it(page: Browser, echo_gateway: Gateway) -> None:
    """Links into the page work."""
    page.open("about:blank")
    page.open(f"{echo_gateway.url}/docs#get_v1_models")
    page.until("document.querySelector('#get_v1_models form') !== null")


def test_style_is_applied(page: Browser) -> None:
    """The policy does not stop the page's own files."""
    style = page.value("getComputedStyle(document.querySelector('.route')).borderTopLeftRadius")
    assert style == "8px"
