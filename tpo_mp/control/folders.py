"""Keeps documents that lie in folders as the folders have them.

Control alone does it for the host.  Every few seconds a thread looks at the files; the store's
thread is given those that are new or changed, one after the other, and told which are gone.  What
was read is remembered in the store, so that no later process reads it again.

Invariants: the loop waits for nothing but answers; at most one file's text is held; what cannot be
seen (a folder that is not mounted, a file without permission) is kept as it was read last; a file
whose folder is configured no more, or for another tenant, is a document no more.
Known weakness: a file that changes twice with the same length within its clock's tick is not seen.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from tpo_mp.observe.log import FilteringBoundLogger
from tpo_mp.ports import Metrics
from tpo_mp.store import rag_files
from tpo_mp.store.rag_files import FileKey
from tpo_mp.store.rag_questions import RagChange
from tpo_mp.store.shelf import Shelf
from tpo_mp.store.tables import Tables

from .folder_scan import Changing, Found, LeftOut, read, scan, title_of
from .keeper import Keeper

if TYPE_CHECKING:
    from tpo_mp.stages.rag import Config, Folder

T = TypeVar("T")

SETTLED_S: Final = 0.05
"""A file that was written less long ago is left for the next look: more may follow."""
MOST_WARNINGS: Final = 20
_NO_ROOM: Final = "there is no room for more documents"


class Folders:
    """The folders of one host; lives on the loop, works on other threads."""

    def __init__(
        self,
        keeper: Keeper,
        log: FilteringBoundLogger,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keeper = keeper
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._plan: Config | None = None
        self._changed = asyncio.Event()
        self._odd: dict[FileKey, tuple[str, str]] = {}
        """Files without a text to keep: the stamp they had when they were read, and why."""
        self._said: dict[tuple[str, str], str] = {}
        self._shown: set[str] = set()

    def configure(self, plan: Config | None) -> None:
        """Look after these folders from now on."""
        self._plan = plan
        self._odd.clear()
        self._changed.set()

    async def run(self) -> None:
        """Look, wait, look again."""
        while True:
            self._changed.clear()
            plan = self._plan
            if plan is not None:
                await self.look(plan)
            wait_s = plan.folder_every_s if plan is not None and plan.folders else None
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def look(self, plan: Config) -> None:
        """Bring the store to what the folders have."""
        known = await self._on_store(rag_files.known)
        if known is None:
            return  # the store is away, and says so itself
        odd = dict(self._odd)
        seen = await asyncio.to_thread(_look_at, plan, self._clock, known, odd)
        if self._plan is plan:
            self._odd = odd
        for key in seen.gone:
            await self._forget(key, known)
        await self._read(plan, seen, known)
        await self._tell(plan, seen, known)

    async def _read(self, plan: Config, seen: _Seen, known: dict[FileKey, str]) -> None:
        """Read what is new or changed, until there is no room for more."""
        full = False
        for key, file in seen.unread:
            if self._plan is not plan:
                return
            why = _NO_ROOM if full else await self._keep(plan, key, file, known)
            full = full or why == _NO_ROOM
            if why:
                seen.left_out[file.folder.name, file.path] = why

    async def _keep(
        self, plan: Config, key: FileKey, file: _File, known: dict[FileKey, str]
    ) -> str:
        """Keep the text of a file; answers why it is left out, empty when it is not."""
        place = _place(file.folder)
        try:
            text = await asyncio.to_thread(read, place, file.path, file.stamp)
        except Changing:
            return ""
        except LeftOut as error:
            if not error.may_be:
                self._odd[key] = (file.stamp, str(error))
                await self._forget(key, known)
            return str(error)
        if not text.strip():
            self._odd[key] = (file.stamp, "")
            await self._forget(key, known)
            return ""
        change = RagChange(
            key.tenant, key.id, title_of(file.path, text), most_documents=plan.max_documents,
            most_bytes=plan.max_bytes,
        )  # fmt: skip
        data, stamp = text.encode(), file.stamp
        kept = await self._on_store(
            lambda tables: rag_files.keep(tables, change, data, stamp), cost=len(data)
        )
        if kept:
            known[key] = stamp
        return _NO_ROOM if kept is False else ""

    async def _forget(self, key: FileKey, known: dict[FileKey, str]) -> None:
        if known.pop(key, None) is not None:
            await self._on_store(lambda tables: rag_files.forget(tables, key))

    async def _on_store(self, work: Callable[[Tables], T], cost: int = 0) -> T | None:
        """Have the store's thread do something; ``None`` when it could not."""
        over: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()

        def job(shelf: Shelf) -> T | None:
            return shelf.with_tables(work)

        def done(result: T | None) -> None:
            if not over.done():
                over.set_result(result)

        self._keeper.submit(job, done, cost=cost, writes=True)
        return await over

    async def _tell(self, plan: Config, seen: _Seen, known: dict[FileKey, str]) -> None:
        """Say what is left out, each once for as long as it stays so."""
        told = await asyncio.to_thread(_sum_up, seen, known, self._said)
        for folder, path in told.news[:MOST_WARNINGS]:
            why = seen.left_out[folder, path]
            self._log.warning("rag_file_left_out", folder=folder, file=path, why=why)
        if len(told.news) > MOST_WARNINGS:
            self._log.warning("rag_files_left_out", more=len(told.news) - MOST_WARNINGS)
        self._said = seen.left_out
        self._shown.update(folder.name for folder in plan.folders)
        for name in self._shown:
            gauge = partial(self._metrics.gauge, folder=name)
            gauge("tpo_rag_folder_documents", "Documents read from a folder.").set(told.have[name])
            gauge("tpo_rag_folder_left_out", "Files of a folder that are no documents.").set(
                told.lack[name]
            )


class _File(NamedTuple):
    """A file that was found."""

    folder: Folder
    path: str
    stamp: str


class _Seen:
    """What all folders have, against what is ``known``, and what may be there unseen."""

    def __init__(self) -> None:
        self.files: dict[FileKey, _File] = {}
        self.unread: list[tuple[FileKey, _File]] = []
        """Those of them that are new or changed, and may be documents."""
        self.gone: list[FileKey] = []
        """What is known and there no more."""
        self.left_out: dict[tuple[str, str], str] = {}
        self._unsettled: set[FileKey] = set()
        self._unseen: set[FileKey] = set()

    def add(self, folder: Folder, found: Found, now: float, known: dict[FileKey, str]) -> None:
        """Take in what was found in one."""
        start = f"{folder.name}/"
        for path, stamp in found.files.items():
            key = FileKey(folder.tenant, start + path)
            if 0 <= now - found.written_at[path] < SETTLED_S and known.get(key) != stamp:
                self._unsettled.add(key)
            else:
                self.files[key] = _File(folder, path, stamp)
        self._unseen |= {FileKey(folder.tenant, start + inside) for inside in found.unseen}
        self.left_out |= {(folder.name, path): why for path, why in found.left_out.items()}

    def compare(self, known: dict[FileKey, str], odd: dict[FileKey, tuple[str, str]]) -> None:
        """Find what is gone and what is to be read; ``odd`` keeps those that are there."""
        self.gone = [key for key in known if not self._may_have(key)]
        for key in [key for key in odd if key not in self.files]:
            del odd[key]
        for key, file in self.files.items():
            if known.get(key) == file.stamp:
                continue
            stamp, why = odd.get(key, ("", ""))
            if stamp != file.stamp:
                self.unread.append((key, file))
            elif why:
                self.left_out[file.folder.name, file.path] = why

    def _may_have(self, key: FileKey) -> bool:
        """Whether this file is there, for all we know."""
        if key in self.files or key in self._unsettled:
            return True
        # There may be thousands of either, so the folders above a file are looked up.
        at = key.id.find("/") if self._unseen else -1
        while at >= 0:
            if FileKey(key.tenant, key.id[: at + 1]) in self._unseen:
                return True
            at = key.id.find("/", at + 1)
        return False


class _Sums(NamedTuple):
    """What is left out and was not said before; documents, and files left out, of each folder."""

    news: list[tuple[str, str]]
    have: Counter[str]
    lack: Counter[str]


def _look_at(
    plan: Config,
    clock: Callable[[], float],
    known: dict[FileKey, str],
    odd: dict[FileKey, tuple[str, str]],
) -> _Seen:
    """Look at all folders, on a thread: there may be many files."""
    seen = _Seen()
    for folder in plan.folders:
        try:
            found = scan(_place(folder), plan.folder_max_files)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            found = Found(left_out={".": f"the folder cannot be read: {why}"}, unseen=[""])
        seen.add(folder, found, clock(), known)
    seen.compare(known, odd)
    return seen


def _sum_up(seen: _Seen, known: dict[FileKey, str], said: dict[tuple[str, str], str]) -> _Sums:
    """Count, on a thread as well."""
    return _Sums(
        [one for one, why in seen.left_out.items() if said.get(one) != why],
        Counter(key.id.partition("/")[0] for key in known),
        Counter(folder for folder, _ in seen.left_out),
    )


def _place(folder: Folder) -> Path:
    return Path(os.path.expanduser(folder.path))  # noqa: PTH111 - Path's own may raise
