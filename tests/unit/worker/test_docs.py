"""The API page is what the route table says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.api import endpoints
from tpo_mp.pipeline.curl import curl_line
from tpo_mp.worker.docs import VARIABLES, render

PAGE = Path(__file__).parents[3] / "docs" / "api.md"


def test_page_is_up_to_date() -> None:
    """`scripts/docs` writes it."""
    assert PAGE.read_text() == render(), "run scripts/docs"


def test_every_route_has_a_sentence_and_a_line() -> None:
    """Aliases stand beside what they are aliases of."""
    page = render()
    for endpoint in endpoints():
        if endpoint.alias_of:
            assert f"`{endpoint.template}`" in page
            continue
        _, _, rest = page.partition(f"### `{endpoint.method} {endpoint.template}`\n")
        section = rest.partition("\n#")[0]
        assert endpoint.summary in section, endpoint.template
        assert section.count("```sh\ncurl ") == 1
        assert curl_line(endpoint) in section


def test_lines_name_only_what_the_page_sets() -> None:
    """No template and no unknown variable is left in an address."""
    for endpoint in endpoints():
        line = curl_line(endpoint)
        address = line.partition("http://")[2].split(" ")[0]
        assert "{" not in address, line
        assert set(re.findall(r"\$(\w+)", address)) <= set(VARIABLES), line


def test_what_deletes_comes_last() -> None:
    """A reader can go down the page."""
    page = render()
    kept = page.index("### `GET /v1/responses/{id}/input_items`")
    assert page.index("### `DELETE /v1/responses/{id}`") > kept
