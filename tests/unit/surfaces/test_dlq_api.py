"""Dead letters over HTTP: pages, letters, and asking them again exactly once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import pytest

from tests.support.fake_gateway import Surface, whole
from tests.support.wait import until
from tpo_mp.errors import BackendFailure, TpoError
from tpo_mp.pipeline import replay
from tpo_mp.pipeline.replay import DIALECTS
from tpo_mp.shm.callid import CallIds
from tpo_mp.store.questions import LETTERS, LetterQuery, ReplayWord
from tpo_mp.surfaces.dlq_api import FEATURE
from tpo_mp.types import Dialect

CALL_ID = CallIds(1, 1).new()


def letter(**changes: Any) -> bytes:
    """A letter as the store tells it."""
    told = {
        "request_id": CALL_ID, "client_request_id": None, "session_id": "s", "reason": "shed",
        "dropped_at": 1.0, "status": "open", "model": "m", "tenant": "acme",
        "path": "/v1/chat/completions", "truncated": False, "bytes_sent": 0,
        "payload": {"model": "m", "messages": [], "stream": True},
    }  # fmt: skip
    return json.dumps(told | changes).encode()


def surface_with(**changes: Any) -> Surface:
    """A surface whose store has one letter."""
    surface = Surface(FEATURE, stored={(LETTERS, CALL_ID): (letter(**changes),)})
    surface.takes_puts = True
    return surface


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/v1/dlq?limit=0", 400),
        ("/api/v1/dlq?limit=1e3", 400),
        ("/api/v1/dlq?limit=10001", 400),
        ("/api/v1/dlq?limit=%D9%A3", 400),
        ("/api/v1/dlq?after=-1", 400),
        ("/api/v1/dlq/not-an-id", 404),
        ("/api/v1/dlq", 503),
    ],
)
def test_questions_that_cannot_be_answered(target: str, status: int) -> None:
    """Bad pages are the client's, a silent store is ours; nothing is a 500."""
    assert Surface(FEATURE).refusal("GET", target).status == status


def test_dead_letters_are_the_stores_own_bytes() -> None:
    """A page and a letter pass as control wrote them."""
    page = b'{"entries":[]}'
    stored: dict[tuple[str, str], Any] = {
        (LETTERS, LetterQuery(limit=5, after=None).key()): (page,),
        (LETTERS, CALL_ID): (letter(),),
    }
    surface = Surface(FEATURE, stored=stored)
    assert surface.ask("GET", "/api/v1/dlq?limit=5").answer == page
    assert surface.ask("GET", f"/api/v1/dlq/{CALL_ID}").answer == letter()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_letter_the_store_does_not_have_is_not_found(method: str) -> None:
    """An id of ours without a letter is 404, not 503."""
    surface = Surface(FEATURE, stored={(LETTERS, CALL_ID): (None,)})
    assert surface.refusal(method, f"/api/v1/dlq/{CALL_ID}").status == 404


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "dropped"}, "letter_dropped"),
        ({"truncated": True}, "letter_truncated"),
        ({"redacted": True}, "letter_redacted"),
        ({"locked": True, "payload": None}, "letter_locked"),
        ({"path": "/v1beta/models/{model}:generateContent"}, "letter_not_replayable"),
    ],
)
def test_what_cannot_be_asked_again_is_a_conflict(changes: dict[str, Any], reason: str) -> None:
    """Said before anything runs."""
    refusal = surface_with(**changes).refusal("POST", f"/api/v1/dlq/{CALL_ID}/replay")
    assert (refusal.status, refusal.reason) == (409, reason)


def test_a_replayed_letter_is_not_run_again() -> None:
    """However often somebody asks."""
    surface = surface_with(status="replayed")
    said = json.loads(surface.ask("POST", f"/api/v1/dlq/{CALL_ID}/replay").answer)
    assert (said["status"], said["ran"]) == ("replayed", False)
    assert not surface.gateway.submitted


async def _replayed(surface: Surface, end: Callable[[Any], None]) -> dict[str, Any] | TpoError:
    """Ask, end the call it made, and answer what the client was told."""
    exchange, work = surface.begin("POST", f"/api/v1/dlq/{CALL_ID}/replay")
    task = asyncio.ensure_future(cast("Awaitable[None]", work))
    before = len(surface.gateway.submitted)
    await until(
        lambda: len(surface.gateway.submitted) > before or task.done(), what="the letter's call"
    )
    end(surface.gateway.submitted[-1])
    try:
        await task
    except TpoError as error:
        return error
    told: dict[str, Any] = json.loads(exchange.answer)
    return told


def test_a_replay_asks_whole_for_the_letters_tenant_and_session() -> None:
    """The client that wanted a stream is gone; no second letter is due."""
    surface = surface_with()
    told = asyncio.run(_replayed(surface, lambda d: d.done(whole(b'{"said":1}'), None)))
    assert isinstance(told, dict)
    assert (told["status"], told["ran"], told["answer"]) == ("replayed", True, {"said": 1})
    (delivery,) = surface.gateway.submitted
    call = delivery.call
    assert json.loads(call.body)["stream"] is False
    assert (call.tenant, call.session, call.dialect) == ("acme", "s", Dialect.OPENAI_CHAT)
    assert call.authorization is None
    assert not delivery.lettered
    assert surface.gateway.replay_words == [
        ReplayWord("begun"), ReplayWord("answered", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(("reason", "unclear"), [("cut_off", True), ("upstream_error", False)])
def test_a_replay_that_fails_leaves_the_letter_open_for_the_next(
    reason: str, unclear: bool
) -> None:
    """And says why, and whether its backend may have worked; the lease ends with it."""
    surface = surface_with()
    gone = BackendFailure("gone", reason=reason)
    for _ in range(2):
        error = asyncio.run(_replayed(surface, lambda d: d.done(None, gone)))
        assert isinstance(error, BackendFailure)
        assert error.reason == reason
        assert surface.gateway.replay_words[-1] == ReplayWord("failed", 1, unclear)


def _asked(submitted: list[Any], number: int) -> bool:
    """Whether so many calls were made."""
    return len(submitted) == number


def test_letters_are_asked_in_the_order_of_their_drop_and_none_overtakes_a_failed_one() -> None:
    """What became of each is told; another session's letters go on."""
    ids = [CallIds(1, 1).new() for _ in range(4)]
    entries = [
        json.loads(letter(request_id=name, session_id=session))
        for name, session in zip(ids, ("a", "b", "a", None), strict=True)
    ]
    page = {"entries": entries, "count": 4, "total": 9, "next": None}
    query = LetterQuery(limit=4, oldest=True)
    stored: dict[tuple[str, str], Any] = {(LETTERS, query.key()): (json.dumps(page).encode(),)}
    for name, entry in zip(ids, entries, strict=True):
        stored[LETTERS, name] = (json.dumps(entry).encode(),)
    surface = Surface(FEATURE, stored=stored)
    surface.takes_puts = True
    submitted = surface.gateway.submitted

    async def story() -> Any:
        exchange, work = surface.begin("POST", "/api/v1/dlq/replay", b'{"limit": 4}')
        task = asyncio.ensure_future(cast("Awaitable[None]", work))
        for n in range(3):
            await until(partial(_asked, submitted, n + 1), 5, "the next")
            error = BackendFailure("gone", reason="upstream_error") if n == 0 else None
            submitted[n].done(None if error else whole(b"{}"), error)
        await task
        return json.loads(exchange.answer)

    told = asyncio.run(story())
    assert [(one["request_id"], one["status"], one["error"]) for one in told["letters"]] == [
        (ids[0], "failed", "upstream_error"), (ids[1], "replayed", None),
        (ids[2], "held", None), (ids[3], "replayed", None),
    ]  # fmt: skip
    assert (told["replayed"], told["failed"], told["held"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"limit": 0}', "limit"),
        (b'{"limit": 101}', "limit"),
        (b'{"max_age_secs": -1}', "max_age_secs"),
        (b'{"session_id": 5}', "session_id"),
        (b'{"sessions": "a"}', "sessions"),
        (b"[]", None),
    ],
)
def test_which_letters_is_said_right_or_refused(body: bytes, param: str | None) -> None:
    """By the field."""
    exchange = Surface(FEATURE)
    with pytest.raises(TpoError) as caught:
        exchange.send("POST", "/api/v1/dlq/replay", body)
    assert caught.value.status in (400, 422)
    assert param is None or param in f"{caught.value.param} {caught.value}"


def test_without_a_word_of_the_store_nothing_is_chosen() -> None:
    """It may come back; an object without a word means ten of all."""
    surface = Surface(FEATURE)
    refusal = surface.refusal("POST", "/api/v1/dlq/replay", {})
    assert (refusal.status, refusal.reason) == (503, "store_unavailable")
    assert surface.gateway.questions == [(LETTERS, LetterQuery(limit=10, oldest=True).key())]


def test_a_word_that_control_does_not_hear_is_told_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The asker has its answer in time; nobody else may ask until control knows."""
    monkeypatch.setattr(replay, "TOLD_S", 0.01)
    monkeypatch.setattr(replay, "_RETRY_S", 0.001)
    surface = surface_with()
    gateway = surface.gateway
    again = f"/api/v1/dlq/{CALL_ID}/replay"

    async def story() -> None:
        def deaf(delivery: Any) -> None:
            gateway.deaf = True
            delivery.done(whole(b"{}"), None)

        told = await _replayed(surface, deaf)
        assert isinstance(told, dict)
        assert told["ran"]
        with pytest.raises(TpoError) as caught:
            await cast("Awaitable[None]", surface.begin("POST", again)[1])
        assert caught.value.reason == "replay_under_way"
        gateway.deaf = False
        await until(lambda: ReplayWord("answered", 1) in gateway.replay_words, 5, "the end told")
        assert isinstance(await _replayed(surface, lambda d: d.done(whole(b"{}"), None)), dict)

    asyncio.run(story())


def test_an_asker_that_leaves_leaves_an_attempt_of_unclear_end() -> None:
    """Its call is cancelled; its backend may have done the work."""
    surface = surface_with()

    async def story() -> None:
        _, work = surface.begin("POST", f"/api/v1/dlq/{CALL_ID}/replay")
        task = asyncio.ensure_future(cast("Awaitable[None]", work))
        await until(lambda: surface.gateway.submitted, what="the letter's call")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: len(surface.gateway.replay_words) == 2, what="the end told")

    asyncio.run(story())
    assert surface.gateway.replay_words[-1] == ReplayWord("failed", 1, unclear=True)


def test_without_control_nothing_is_asked() -> None:
    """An attempt that cannot be written down is not made."""
    surface = surface_with()
    surface.gateway.deaf = True
    refusal = surface.refusal("POST", f"/api/v1/dlq/{CALL_ID}/replay")
    assert (refusal.status, refusal.reason) == (503, "store_unavailable")
    assert not surface.gateway.submitted


def test_every_route_that_takes_calls_has_a_dialect() -> None:
    """A letter's path is one of them, or a native one, whose body is a chat."""
    google = {Dialect.GEMINI, Dialect.GEMINI_COUNT, Dialect.GEMINI_EMBEDDINGS}
    assert set(DIALECTS.values()) == set(Dialect) - google
