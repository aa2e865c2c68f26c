"""A line to paste: the right words for each kind of endpoint, safe in a shell."""

from __future__ import annotations

import json
import shlex
from typing import Any

from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome
from tpo_mp.pipeline.curl import curl_line


def line(method: str = "GET", template: str = "/a", **more: Any) -> list[str]:
    """The words of an endpoint's line, as a shell reads them."""
    endpoint = Endpoint(method, template, lambda _exchange: None, "native", **more)
    return shlex.split(curl_line(endpoint))


def test_reading_is_a_plain_line() -> None:
    """Nothing to say but the address."""
    assert line() == ["curl", "-s", "http://127.0.0.1:8080/a"]


def test_body_survives_the_shell() -> None:
    """Quotes of both kinds, blanks, dollars."""
    body = {"prompt": """it's "1" $HOME `id` \\n"""}
    words = line("POST", request=dict, example=body)
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8080/a"]
    assert words[3:5] == ["-H", "content-type: application/json"]
    assert json.loads(words[words.index("-d") + 1]) == body


def test_other_methods_are_named() -> None:
    """POST is implied by a body alone."""
    assert line("DELETE")[2:4] == ["-X", "DELETE"]
    assert line("POST", takes_json=False)[2:4] == ["-X", "POST"]


def test_names_in_a_path_are_filled_in() -> None:
    """The template itself is no address."""
    words = line(template="/a/{id}", example_path="/a/$CALL_ID")
    assert words[-1] == "http://127.0.0.1:8080/a/$CALL_ID"


def test_streams_are_not_buffered() -> None:
    """Only where nothing else is answered."""
    assert line(outcomes=(Outcome("events", media=EVENTS),))[1] == "-sN"
    assert line(outcomes=(Outcome("whole", dict), Outcome("events", media=EVENTS)))[1] == "-s"
