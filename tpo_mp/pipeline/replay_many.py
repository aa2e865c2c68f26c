"""Asks several dead letters again, one after the other, in the order in which they were dropped.

When one is not answered, the later ones of its session are held back: they were asked after it.
Letters that only memory has, while the disk refuses, are not chosen.

Invariants: each is asked as by itself (``replay.Replayer``), under the host's lease, so it does not
matter who else asks; nothing is asked once the store does not answer, or the asker has gone; a
session is one tenant's, whoever else has one of its name.
"""

from __future__ import annotations

import time

import msgspec

from tpo_mp.dialects.letter_shapes import ReplayedLetter, ReplayedLetters, ReplayRequest
from tpo_mp.dialects.shapes import LetterEntry, LetterPage
from tpo_mp.errors import Shed, TpoError
from tpo_mp.http.exchange import Exchange
from tpo_mp.store.questions import ASK_S, LETTERS, LetterQuery

from .gateway import Gateway
from .replay import SILENT, Replayer

_page = msgspec.json.Decoder(LetterPage).decode


async def replay_many(
    gateway: Gateway, replayer: Replayer, exchange: Exchange, asked: ReplayRequest
) -> ReplayedLetters:
    """Ask those that are meant; raises ``Shed`` when the store does not say which."""
    told: list[ReplayedLetter] = []
    stuck: set[tuple[str, str | None]] = set()
    for entry in await _chosen(gateway, asked):
        session = entry.tenant, entry.session_id
        if session in stuck:
            one = _told(entry, "held")
        else:
            one = await _ask(replayer, exchange, entry)
        told.append(one)
        if one.status == "failed" and entry.session_id:
            stuck.add(session)
        if one.error == SILENT:
            break
    counts: list[str] = [one.status for one in told]
    return ReplayedLetters(told, *map(counts.count, ("replayed", "failed", "held")))


async def _chosen(gateway: Gateway, asked: ReplayRequest) -> list[LetterEntry]:
    since = None if asked.max_age_secs is None else time.time() - asked.max_age_secs
    query = LetterQuery(limit=asked.limit, session=asked.session_id, since=since, oldest=True)
    answer = await gateway.ask_store(LETTERS, query.key(), ASK_S)
    if answer is None or answer[0] is None:
        raise Shed("the store does not answer", reason=SILENT, retry_after_s=1)
    return _page(answer[0]).entries


async def _ask(replayer: Replayer, exchange: Exchange, entry: LetterEntry) -> ReplayedLetter:
    try:
        answered = await replayer.ask_again(exchange, entry.request_id)
    except TpoError as error:
        return _told(entry, "failed", error=error.reason)
    return _told(entry, "replayed", call_id=None if answered is None else answered[0])


def _told(
    entry: LetterEntry, status: str, *, call_id: str | None = None, error: str | None = None
) -> ReplayedLetter:
    return ReplayedLetter(entry.request_id, entry.session_id, status, call_id, error)  # type: ignore[arg-type]  # three words
