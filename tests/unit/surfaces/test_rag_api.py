"""Documents over HTTP: what is kept, whose it is, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.fake_gateway import Surface
from tpo_mp.config.tree import Config
from tpo_mp.dialects import rag_shapes
from tpo_mp.stages import rag
from tpo_mp.store.rag_questions import RAG, RagChange, RagQuestion, change_of
from tpo_mp.surfaces.rag_api import FEATURE

DOCUMENTS = "/api/v1/rag/documents"
SUMS = b'{"documents":1,"bytes":5,"all_bytes":9}'


def surface(**options: Any) -> Surface:
    """A surface of tenant ``t`` over a store that takes what it is given."""
    made = Surface(FEATURE)
    made.gateway.config = Config(stages={"rag": msgspec.convert(options, rag.Config)})
    made.gateway.tenants = {"": "t"}
    made.gateway.stored[RAG, RagQuestion("sums", "t").key()] = (SUMS,)
    made.takes_puts = True
    return made


def test_a_document_is_kept_for_its_tenant() -> None:
    """Under the name it has, or one of ours."""
    made = surface(max_documents=7, max_bytes=1000)
    sent = {"id": "hours", "title": "Hours", "text": "We open at nine."}
    told = made.ask("POST", DOCUMENTS, sent).json()
    assert told == {"id": "hours", "title": "Hours", "bytes": 16}
    ((_, key),) = made.puts
    assert change_of(key) == RagChange("t", "hours", "Hours", False, 7, 1000)
    assert made.puts[RAG, key] == b"We open at nine."
    assert len(made.ask("POST", DOCUMENTS, {"text": "x"}).json()["id"]) == 32


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({}, "text"), ({"text": ""}, "text"), ({"text": "  "}, "text"), ({"text": 5}, "text"),
        ({"text": "a", "id": "../x"}, "id"), ({"text": "a", "id": "x" * 129}, "id"),
        ({"text": "a", "title": "x" * 257}, "title"), ({"text": "a", "tenant": "u"}, "tenant"),
        ({"text": "é" * 60}, "text has 120 bytes"),
    ],
)  # fmt: skip
def test_a_bad_document_is_refused(
    monkeypatch: pytest.MonkeyPatch, sent: dict[str, Any], said: str
) -> None:
    """Naming the field; nothing is kept."""
    monkeypatch.setattr(rag_shapes, "MAX_TEXT_BYTES", 100)
    made = surface()
    error = made.refusal("POST", DOCUMENTS, sent)
    assert error.status in (400, 422)
    assert said in error.message
    assert made.puts == {}


def test_caps_and_a_store_that_is_away_are_told() -> None:
    """Full is 429 and no use to try again, away is 503."""
    full = surface(max_bytes=10).refusal("POST", DOCUMENTS, {"text": "abc"})
    assert (full.status, full.reason) == (429, "documents_full")
    many = surface(max_documents=1)
    many.takes_puts = False
    assert many.refusal("POST", DOCUMENTS, {"text": "a"}).reason == "documents_full"
    away = surface()
    away.takes_puts = False
    assert away.refusal("POST", DOCUMENTS, {"text": "a"}).reason == "store_unavailable"
    assert away.refusal("GET", f"{DOCUMENTS}/x").reason == "store_unavailable"


def test_a_document_is_shown_and_forgotten_by_its_own_tenant() -> None:
    """Another's, or none, is 404."""
    made = surface()
    made.gateway.stored[RAG, RagQuestion("one", "t", "hours").key()] = (b'{"id":"hours"}',)
    made.gateway.stored[RAG, RagQuestion("one", "t", "none").key()] = (None,)
    assert made.ask("GET", f"{DOCUMENTS}/hours").json() == {"id": "hours"}
    assert made.ask("DELETE", f"{DOCUMENTS}/hours").json() == {"id": "hours", "deleted": True}
    assert [change_of(key) for _, key in made.puts] == [RagChange("t", "hours", gone=True)]
    for method in ("GET", "DELETE"):
        assert made.refusal(method, f"{DOCUMENTS}/none").reason == "document_not_found"


def test_a_file_of_a_folder_is_not_forgotten() -> None:
    """It would be back after the next look; one that is none of the caller's does not exist."""
    made = surface()
    made.gateway.stored[RAG, RagQuestion("one", "t", "f/x.md").key()] = (b'{"id":"f/x.md"}',)
    made.gateway.stored[RAG, RagQuestion("one", "t", "f/y.md").key()] = (None,)
    error = made.refusal("DELETE", f"{DOCUMENTS}/f/x.md")
    assert (error.reason, error.param) == ("document_of_a_folder", "document")
    assert made.refusal("DELETE", f"{DOCUMENTS}/f/y.md").reason == "document_not_found"
    assert made.puts == {}


def test_without_the_stage_there_are_no_documents() -> None:
    """Whatever is asked."""
    made = surface()
    made.gateway.config = Config()
    for method, path in (("POST", DOCUMENTS), ("GET", DOCUMENTS), ("DELETE", f"{DOCUMENTS}/x")):
        error = made.refusal(method, path, {"text": "a"} if method == "POST" else None)
        assert (error.status, error.reason) == (404, "rag_disabled")
