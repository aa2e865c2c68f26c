"""The route table: literal paths, named segments, methods."""

from __future__ import annotations

import pytest

from tpo_mp.errors import ConfigError
from tpo_mp.http.endpoints import Endpoint, EndpointTable


def endpoint(method: str, template: str) -> Endpoint:
    """Make an endpoint that does nothing."""
    return Endpoint(method, template, lambda _exchange: None, "native")


TABLE = EndpointTable(
    [
        endpoint("GET", "/v1/models"),
        endpoint("GET", "/v1/models/{model}"),
        endpoint("POST", "/v1/chat/completions"),
        endpoint("GET", "/api/v1/result/{id}"),
        endpoint("DELETE", "/api/v1/result/{id}"),
        endpoint("GET", "/api/v1/{kind}/{id}/parts"),
        endpoint("GET", "/documents/{document}"),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "template", "params"),
    [
        ("GET", "/v1/models", "/v1/models", {}),
        ("POST", "/v1/chat/completions", "/v1/chat/completions", {}),
        ("GET", "/api/v1/result/7", "/api/v1/result/{id}", {"id": "7"}),
        ("DELETE", "/api/v1/result/7", "/api/v1/result/{id}", {"id": "7"}),
        ("GET", "/v1/models/org/name", "/v1/models/{model}", {"model": "org/name"}),
        ("GET", "/api/v1/a/b/parts", "/api/v1/{kind}/{id}/parts", {"kind": "a", "id": "b"}),
        ("HEAD", "/v1/models", "/v1/models", {}),
        ("GET", "/documents/a/b.md", "/documents/{document}", {"document": "a/b.md"}),
    ],
)
def test_path_finds_its_endpoint(
    method: str, path: str, template: str, params: dict[str, str]
) -> None:
    """Literal before pattern; only the name of a model or document may hold slashes."""
    found, given, _ = TABLE.match(method, path)
    assert found is not None
    assert (found.template, given) == (template, params)


@pytest.mark.parametrize(
    "path",
    ["/", "", "/v1", "/v1/models/", "/v1/models//", "/V1/models", "/v1//models", "/v1/models/../x/",
     "/api/v1/result/", "/api/v1/result/a/b", "/v1/chat/completions/", "//v1/models"],
)  # fmt: skip
def test_near_misses_are_misses(path: str) -> None:
    """No prefix, spelling variant or empty segment reaches a handler by accident."""
    found, _, _ = TABLE.match("GET", path)
    assert found is None or found.template == "/v1/models/{model}"


def test_other_methods_learn_what_is_allowed() -> None:
    """405 needs the list."""
    found, _, allowed = TABLE.match("PUT", "/api/v1/result/7")
    assert found is None
    assert allowed == "GET, DELETE"
    assert TABLE.match("HEAD", "/v1/chat/completions") == (None, {}, "POST")


def test_path_has_a_family_whatever_the_method() -> None:
    """Whose words a 405 is said in."""
    assert TABLE.family("/v1/models") == "native"
    assert TABLE.family("/api/v1/result/7") == "native"
    assert TABLE.family("/nowhere") is None


def test_one_endpoint_per_method_and_path() -> None:
    """Two surfaces cannot claim the same route."""
    with pytest.raises(ConfigError, match="two surfaces answer GET /a"):
        EndpointTable([endpoint("GET", "/a"), endpoint("GET", "/a")])
    with pytest.raises(ConfigError, match="two surfaces answer GET /a"):
        EndpointTable([endpoint("GET", "/a/{x}"), endpoint("GET", "/a/{x}")])


def test_summary_is_the_docstrings_first_sentence() -> None:
    """Said once, beside the code; a given one wins."""

    def described(_exchange: object) -> None:
        """Answer `1.5` on
        one line.  Then more.

        And more.
        """

    assert Endpoint("GET", "/a", described, "native").summary == "Answer `1.5` on one line."
    assert Endpoint("GET", "/a", described, "native", summary="Else.").summary == "Else."
    assert endpoint("GET", "/a").summary == ""
    assert endpoint("GET", "/a").tags == ("native",)


def test_alias_is_the_same_endpoint_elsewhere() -> None:
    """Handler, limits and description are shared."""
    first, second = endpoint("GET", "/a").at("/b")
    assert (first.template, first.alias_of) == ("/a", "")
    assert (second.template, second.alias_of) == ("/b", "/a")
    assert second.handler is first.handler


def test_alias_fills_in_the_same_names() -> None:
    """Wherever they stand in its path."""
    given = Endpoint("GET", "/a/{x}/b/{y}", print, "native", example_path="/a/1/b/2")
    assert [e.example_path for e in given.at("/{y}/c/{x}")] == ["/a/1/b/2", "/2/c/1"]


def test_every_endpoint_is_listed() -> None:
    """The banner shows them all."""
    assert len(TABLE.all) == 7
