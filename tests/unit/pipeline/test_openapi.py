"""The API's description is whole, consistent, and says what the structs do."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from typing import Any

import msgspec
import pytest

from tests.conftest import require
from tests.support.api import (
    METHODS,
    described,
    endpoints,
    follow,
    operations,
    references,
    validator,
)
from tpo_mp.dialects import native, openai_chat
from tpo_mp.dialects.body import ROUTING_FIELDS
from tpo_mp.http.endpoints import Endpoint, Outcome, Parameter
from tpo_mp.pipeline.openapi import document

DOC = described()
COMPONENT = re.compile(r"[A-Za-z0-9._-]+")


def nothing(_exchange: object) -> None:
    """Answer nothing."""


def test_every_route_is_described_once_and_nothing_else() -> None:
    """The table is the list."""
    told = {(method.upper(), path) for path, method, _ in operations(DOC)}
    assert told == {(e.method, e.template) for e in endpoints()}
    assert {method for _, method, _ in operations(DOC)} <= METHODS


def test_document_is_plain_json() -> None:
    """It says the same after a round trip."""
    assert json.loads(json.dumps(DOC)) == DOC
    assert DOC["openapi"] == "3.1.0"


def test_document_is_valid_openapi() -> None:
    """By the specification's own schema, as a client generator applies it."""
    require(importlib.util.find_spec("schemathesis") is not None, "schemathesis")
    import schemathesis

    schemathesis.openapi.from_dict(copy.deepcopy(DOC)).validate()
    broken = copy.deepcopy(DOC)
    del broken["paths"]["/live"]["get"]["responses"]["200"]["description"]
    with pytest.raises(Exception, match="description"):
        schemathesis.openapi.from_dict(broken).validate()


def test_every_reference_resolves() -> None:
    """No schema, answer, header or parameter is missing, and none is left over."""
    used = set(references(DOC))
    for ref in used:
        assert follow(DOC, {"$ref": ref}), ref
    kinds = ("schemas", "responses", "parameters", "headers")
    offered = {f"#/components/{kind}/{name}" for kind in kinds for name in DOC["components"][kind]}
    assert offered == used
    assert all(COMPONENT.fullmatch(ref.rpartition("/")[2]) for ref in offered)


def test_operations_are_complete() -> None:
    """Each has a unique id, known tags, its path's parameters, a good answer or why not."""
    ids = [operation["operationId"] for _, _, operation in operations(DOC)]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in DOC["tags"]}
    for path, _, operation in operations(DOC):
        given = [follow(DOC, one) for one in operation["parameters"]]
        named = {one["name"] for one in given if one["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path))
        assert len({(one["in"], one["name"]) for one in given}) == len(given)
        assert set(operation["tags"]) <= tags
        assert operation["summary"]
        answers = operation["responses"]
        assert {"400", "500"} <= set(answers), path
        assert all(follow(DOC, one)["description"] for one in answers.values())


def test_aliases_are_described_like_what_they_stand_for() -> None:
    """But for their names."""
    for path, method, operation in operations(DOC):
        canonical = operation.get("x-alias-of")
        if canonical:
            other = DOC["paths"][canonical][method]
            same = ("summary", "responses", "parameters", "tags")
            assert [operation[k] for k in same] == [other[k] for k in same], path


def test_examples_fit_their_schemas() -> None:
    """What a reader copies is right."""
    seen = 0
    for path, _, operation in operations(DOC):
        body = operation.get("requestBody")
        if body:
            media = body["content"]["application/json"]
            assert not validator(DOC, media["schema"]).errors(media["example"]), path
            seen += 1
    assert seen >= 8


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (openai_chat.ChatRequest, "ChatRequest", {"model": "m", "messages": []}),
        (openai_chat.ChatRequest, "ChatRequest", {"model": "m", "messages": [{"role": "user"}]}),
        (openai_chat.ChatRequest, "ChatRequest", {"messages": [{"role": "user"}]}),
        (openai_chat.ChatRequest, "ChatRequest",
         {"model": "m", "messages": [{"role": "user"}], "temperature": 3}),
        (native.PromptRequest, "PromptRequest", {"prompt": "x", "temperature": 1.5}),
        (native.PromptRequest, "PromptRequest", {"prompt": "x", "nobody": 1}),
        (native.PromptRequest, "PromptRequest", {"prompt": 7}),
    ],
)  # fmt: skip
def test_schema_and_decoder_agree(kind: type, name: str, value: dict[str, Any]) -> None:
    """What the schema takes the decoder takes, and the other way round."""
    wrong = validator(DOC, DOC["components"]["schemas"][name]).errors(value)
    try:
        msgspec.json.decode(json.dumps(value), type=kind)
    except msgspec.ValidationError:
        assert wrong
    else:
        assert not wrong


def test_fields_that_are_stripped_are_not_offered() -> None:
    """Nobody is invited to name an upstream."""
    text = json.dumps(DOC["components"]["schemas"])
    assert not [field for field in ROUTING_FIELDS if f'"{field}": {{' in text]


def test_families_refuse_in_their_own_envelope() -> None:
    """400 of each family names its error body; Anthropic's overload is 529."""
    for path, method, family in [
        ("/v1/chat/completions", "post", "OpenAIErrorBody"),
        ("/v1/messages", "post", "AnthropicErrorBody"),
        ("/v1/prompt", "post", "NativeErrorBody"),
        ("/live", "get", "OpenAIErrorBody"),
    ]:
        answer = follow(DOC, DOC["paths"][path][method]["responses"]["400"])
        schema = answer["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{family}"}
        assert "x-request-id" in answer["headers"]
    answers = DOC["paths"]["/v1/messages"]["post"]["responses"]
    assert "529" in answers
    assert "503" not in answers


def test_what_an_endpoint_adds_is_shown() -> None:
    """Parameters, statuses, media types and schemas given as such."""
    made = document(
        [
            Endpoint(
                "POST", "/a/{id}", nothing, "native", summary="Do it.", errors=(409,),
                request={"type": "object"}, example={},
                parameters=(Parameter("n", "How many.", int),
                            Parameter("h", "Which.", place="header")),
                outcomes=(Outcome("done", {"type": "array"}, 201),
                          Outcome("upgraded", status=101, media="")),
            )
        ]
    )  # fmt: skip
    operation = made["paths"]["/a/{id}"]["post"]
    assert {"101", "201", "400", "404", "409", "415", "422"} <= set(operation["responses"])
    assert operation["responses"]["201"]["content"]["application/json"]["schema"] == {
        "type": "array"
    }
    assert "content" not in operation["responses"]["101"]
    places = [(one["in"], one["name"]) for one in operation["parameters"] if "in" in one]
    assert places == [("path", "id"), ("query", "n"), ("header", "h")]
    assert operation["parameters"][1]["schema"] == {"type": "integer"}
