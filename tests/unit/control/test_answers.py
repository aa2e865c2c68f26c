"""Answers about dead letters, in the shape of their routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tpo_mp.control import answers
from tpo_mp.store.letters import Letter
from tpo_mp.store.questions import LETTERS, LetterQuery
from tpo_mp.store.shelf import Shelf, ShelfOptions


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """A shelf with three letters."""
    made = Shelf(tmp_path, ShelfOptions())
    bodies = (b'{"a":1}', b"plain text", b"\xff\xfe\x00")
    made.add_letters(
        Letter(f"c{n}", "", "", "shed", float(n), "m", "t", "/p", body)
        for n, body in enumerate(bodies)
    )
    made.commit()
    yield made
    made.close()


def one(shelf: Shelf, key: str) -> dict[str, object]:
    """One decoded answer."""
    ok, raw = answers.get(shelf, LETTERS, key)
    assert ok
    assert raw is not None
    found: dict[str, object] = json.loads(raw)
    return found


def test_a_page_says_whether_there_is_more(shelf: Shelf) -> None:
    """``next`` is the cursor of the following page, and null at the end."""
    first = one(shelf, LetterQuery(limit=2).key())
    assert (first["count"], first["total"]) == (2, 3)
    last = one(shelf, LetterQuery(limit=2, after=int(str(first["next"]))).key())
    assert (last["count"], last["next"]) == (1, None)
    assert last["entries"] == [
        {"request_id": "c0", "client_request_id": None, "session_id": None, "reason": "shed",
         "dropped_at": 0.0, "tenant": "t"}
    ]  # fmt: skip


def test_payloads_of_every_kind_are_shown(shelf: Shelf) -> None:
    """JSON as JSON, text as text, bytes as base64."""
    assert one(shelf, "c0")["payload"] == {"a": 1}
    assert (one(shelf, "c1")["payload"], one(shelf, "c1")["encoding"]) == ("plain text", "text")
    assert (one(shelf, "c2")["payload"], one(shelf, "c2")["encoding"]) == ("//4A", "base64")


def test_unknown_letters_are_absent(shelf: Shelf) -> None:
    """Absent, not unavailable; a malformed query is an unknown letter."""
    assert answers.get(shelf, LETTERS, "nobody") == (True, None)
    assert answers.get(shelf, LETTERS, '{"limit":-1}') == (True, None)


def test_only_known_statuses_are_taken(shelf: Shelf) -> None:
    """A letter can be marked, a fantasy status not."""
    assert answers.put(shelf, LETTERS, "c0", b"replayed", 0.0)
    assert not answers.put(shelf, LETTERS, "c1", b"\xff", 0.0)
    assert not answers.put(shelf, LETTERS, "nobody", b"dropped", 0.0)
    shelf.commit()
    assert one(shelf, LetterQuery().key())["total"] == 2
    assert one(shelf, "c0")["status"] == "replayed"


@pytest.mark.parametrize(("sent", "said"), [(0, 0), (70, 70), (-1, None)])
def test_letter_says_how_much_was_sent_or_that_nobody_knows(
    shelf: Shelf, sent: int, said: int | None
) -> None:
    """Nothing sent is not the same as not known."""
    shelf.add_letters([Letter("s", "", "", "lost", 1.0, "m", "t", "/p", b"{}", bytes_sent=sent)])
    assert one(shelf, "s")["bytes_sent"] == said


def test_letter_of_an_older_log_says_nothing_of_bytes() -> None:
    """Its record has no such field."""
    old = msgspec.msgpack.encode((1, "s", "", "", "lost", 1.0, "m", "t", "/p", b"{}", False))
    assert msgspec.msgpack.decode(old, type=Letter).bytes_sent == -1
