"""SQLite (WAL) tables: keyed values with a lifetime, and the index of dead letters.

::

    kv            tbl, key -> value, size, written_at, expires_at, label, state
                                        results and Env.store tables; label and state find them
    dead_letters  seq, call_id (unique), …, segment, offset, length   rebuildable from the segments
    marks         name -> value                                       how far the index has read
    jobs, job_prompts   batch jobs; ``job_table`` says what they hold
    counts        numbers that outlive the host; see ``counts``

Writes of one batch are one transaction: ``put`` and friends stage, ``commit`` makes them durable.
A table that is full evicts its oldest rows; expired rows are never answered.

Invariants: ``user_version`` is the schema version and only moves forward; a file that SQLite calls
damaged is moved to ``NAME.corrupt`` and a new one is made, because everything here is either
rebuildable or has a lifetime.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .questions import VALUE_BYTES
from .sealing import SEAL_BYTES, is_sealed
from .segment_files import Place
from .segments import Durability

STEPS = 2_000
"""Of the database's machine between two looks at the time."""
MIGRATIONS = (
    """
    CREATE TABLE kv(
        tbl TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, size INTEGER NOT NULL,
        written_at REAL NOT NULL, expires_at REAL NOT NULL, PRIMARY KEY(tbl, key));
    CREATE INDEX kv_expiry ON kv(expires_at);
    CREATE INDEX kv_age ON kv(tbl, written_at, size);
    CREATE TABLE dead_letters(
        seq INTEGER PRIMARY KEY AUTOINCREMENT, call_id TEXT NOT NULL UNIQUE,
        client_request_id TEXT NOT NULL, session TEXT NOT NULL, reason TEXT NOT NULL,
        dropped_at REAL NOT NULL, model TEXT NOT NULL, tenant TEXT NOT NULL, path TEXT NOT NULL,
        status TEXT NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
        length INTEGER NOT NULL);
    CREATE INDEX dead_letters_open ON dead_letters(status, seq);
    CREATE INDEX dead_letters_segment ON dead_letters(segment);
    CREATE TABLE marks(name TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
    """
    ALTER TABLE kv ADD COLUMN label TEXT NOT NULL DEFAULT '';
    ALTER TABLE kv ADD COLUMN state TEXT NOT NULL DEFAULT '';
    CREATE INDEX kv_by_label ON kv(tbl, label) WHERE state != '';
    CREATE INDEX kv_by_state ON kv(tbl, state) WHERE state != '';
    CREATE INDEX kv_in_order ON kv(tbl) WHERE state != '';
    """,
    """
    CREATE TABLE jobs(
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
        session TEXT NOT NULL, model TEXT NOT NULL, concurrency INTEGER NOT NULL,
        max_tokens INTEGER NOT NULL, temperature REAL NOT NULL, state TEXT NOT NULL,
        total INTEGER NOT NULL, completed INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL, created_at REAL NOT NULL, ended_at REAL NOT NULL DEFAULT 0);
    CREATE INDEX jobs_state ON jobs(state, ended_at);
    CREATE TABLE job_prompts(
        job INTEGER NOT NULL, n INTEGER NOT NULL, call_id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL DEFAULT 'waiting', run TEXT NOT NULL DEFAULT '',
        seat INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0,
        lost INTEGER NOT NULL DEFAULT 0, sent_back INTEGER NOT NULL DEFAULT 0,
        prompt TEXT NOT NULL, record BLOB, PRIMARY KEY(job, n));
    CREATE INDEX job_prompts_state ON job_prompts(job, state, n);
    CREATE INDEX job_prompts_running ON job_prompts(run) WHERE state='running';
    """,
    """
    CREATE TABLE counts(
        digest BLOB PRIMARY KEY, crowd INTEGER NOT NULL, a REAL NOT NULL, b REAL NOT NULL,
        c REAL NOT NULL, d REAL NOT NULL, written_at REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX counts_age ON counts(written_at);
    """,
    """
    CREATE TABLE letter_attempts(
        call_id TEXT PRIMARY KEY, attempts INTEGER NOT NULL, next_at REAL NOT NULL,
        run TEXT NOT NULL, seat INTEGER NOT NULL, epoch INTEGER NOT NULL,
        repeated INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX letter_attempts_asking ON letter_attempts(run) WHERE run!='';
    CREATE INDEX dead_letters_session ON dead_letters(tenant, session, dropped_at, seq)
        WHERE status='open';
    """,
    # ``replay_table`` says what ``look_at`` means; whatever may make a letter due sets it to 0.
    """
    ALTER TABLE dead_letters ADD COLUMN look_at REAL NOT NULL DEFAULT 0;
    DROP INDEX dead_letters_session;
    CREATE INDEX dead_letters_first ON dead_letters(tenant, session, dropped_at, seq)
        WHERE status='open' AND look_at<3e12;
    CREATE INDEX dead_letters_look ON dead_letters(look_at, seq) WHERE status='open';
    CREATE INDEX dead_letters_dropped ON dead_letters(dropped_at) WHERE status='open';
    CREATE VIEW letter_first AS SELECT tenant, session, seq, dropped_at FROM dead_letters
        WHERE status='open' AND look_at<3e12;
    CREATE TRIGGER letter_begun AFTER INSERT ON letter_attempts BEGIN
        UPDATE dead_letters SET look_at=0 WHERE call_id=NEW.call_id; END;
    CREATE TRIGGER letter_tried AFTER UPDATE ON letter_attempts BEGIN
        UPDATE dead_letters SET look_at=0 WHERE call_id=NEW.call_id; END;
    CREATE TRIGGER letter_closed AFTER UPDATE OF status ON dead_letters WHEN OLD.session!=''
        BEGIN UPDATE dead_letters SET look_at=0 WHERE seq=(SELECT seq FROM letter_first
        WHERE tenant=OLD.tenant AND session=OLD.session ORDER BY dropped_at, seq LIMIT 1); END;
    CREATE TRIGGER letter_gone AFTER DELETE ON dead_letters
        WHEN OLD.session!='' AND OLD.status='open'
        BEGIN UPDATE dead_letters SET look_at=0 WHERE seq=(SELECT seq FROM letter_first
        WHERE tenant=OLD.tenant AND session=OLD.session ORDER BY dropped_at, seq LIMIT 1); END;
    CREATE TRIGGER letter_spent AFTER UPDATE OF look_at ON dead_letters
        WHEN NEW.look_at>=3e12 AND OLD.session!=''
        BEGIN UPDATE dead_letters SET look_at=0 WHERE seq=(SELECT seq FROM letter_first
        WHERE tenant=OLD.tenant AND session=OLD.session ORDER BY dropped_at, seq LIMIT 1); END;
    """,
)
_SYNCHRONOUS: Mapping[Durability, str] = {"no": "OFF", "everysec": "NORMAL", "always": "FULL"}
_COLUMNS = (
    "seq, call_id, client_request_id, session, reason, dropped_at, model, tenant, path, status"
)
_MAX_TABLES = 64
_SLICE = 500


@dataclass(frozen=True, slots=True)
class TableCaps:
    """Caps of one keyed table."""

    rows: int = 100_000
    bytes: int = 256 << 20
    age_s: float = 7 * 86400.0
    value_bytes: int = VALUE_BYTES


@dataclass(slots=True)
class Fill:
    """How full one keyed table is."""

    rows: int = 0
    bytes: int = 0
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class LetterHeader:
    """A dead letter without its payload; ``seq`` is 0 before the index has it."""

    seq: int
    call_id: str
    client_request_id: str
    session: str
    reason: str
    dropped_at: float
    model: str
    tenant: str
    path: str
    status: str


class Tables:
    """The database; used by one thread.  Every method may raise ``sqlite3.Error``."""

    def __init__(
        self,
        path: Path,
        caps: TableCaps,
        durability: Durability = "everysec",
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or make the database and migrate it forward."""
        self.caps = caps
        self.fills: dict[str, Fill] = {}
        self._path = path
        self._clock = clock
        self._in_batch = False
        self.undone = False
        """Whether something staged for the next ``commit`` was rolled back."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._db = self._open(durability)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self._set_aside()
            self._db = self._open(durability)

    # -- keyed values ---------------------------------------------------------------------------

    def get(self, table: str, key: str) -> bytes | None:
        """The value, unless it is unknown or expired."""
        row = self._db.execute(
            "SELECT value FROM kv WHERE tbl=? AND key=? AND expires_at>?",
            (table, key, self._clock()),
        ).fetchone()
        return None if row is None else bytes(row[0])

    def put(
        self, table: str, key: str, value: bytes, ttl_s: float, *, label: str = "", state: str = ""
    ) -> bool:
        """Keep a value for ``ttl_s`` (0 or less forgets it); False when a cap forbids it.

        With a ``state`` it is found by ``labelled`` too, and what is put again in the same state
        keeps its place there: who heard no answer in time says the same once more.
        """
        if len(value) - (SEAL_BYTES if is_sealed(value) else 0) > self.caps.value_bytes:
            return False
        if table not in self.fills and len(self.fills) >= _MAX_TABLES:
            return False
        self._begin()
        same = (
            state
            and self._db.execute(
                "SELECT rowid FROM kv WHERE tbl=? AND key=? AND label=? AND state=?",
                (table, key, label, state),
            ).fetchone()
        )
        self._forget("tbl=? AND key=?", (table, key))
        if ttl_s <= 0:
            return True
        now = self._clock()
        ttl_s = min(ttl_s, self.caps.age_s)
        self._db.execute(
            "INSERT INTO kv(rowid, tbl, key, value, size, written_at, expires_at, label, state)"
            " VALUES(?,?,?,?,?,?,?,?,?)",
            (
                same[0] if same else None,
                table,
                key,
                value,
                len(value),
                now,
                now + ttl_s,
                label,
                state,
            ),
        )
        fill = self.fills.setdefault(table, Fill())
        fill.rows += 1
        fill.bytes += len(value)
        if fill.rows > self.caps.rows or fill.bytes > self.caps.bytes:
            self._evict(table, fill)
        return True

    def labelled(
        self,
        table: str,
        limit: int,
        *,
        before: int | None,
        label: str | None,
        state: str | None,
        ending: str = "",
    ) -> Iterator[tuple[int, str, bytes]]:
        """(row number, key, value) of a table, newest first, older than row ``before``.

        ``ending`` is how their keys must end.
        """
        where = ["state != ''", "tbl=?", "expires_at>?", "rowid<?"]
        params: list[Any] = [table, self._clock(), before if before is not None else 1 << 62]
        for column, wanted in (("label", label), ("state", state)):
            if wanted is not None:
                where.append(f"{column}=?")
                params.append(wanted)
        if ending:
            where.append("substr(key, ?)=?")
            params += [-len(ending), ending]
        return iter(
            self._db.execute(
                f"SELECT rowid, key, value FROM kv WHERE {' AND '.join(where)}"  # noqa: S608
                " ORDER BY rowid DESC LIMIT ?",
                (*params, limit),
            )
        )

    def expire(self) -> int:
        """Delete a slice of expired rows; answers how many."""
        self._begin()
        return self._forget(
            "rowid IN (SELECT rowid FROM kv WHERE expires_at<=? LIMIT ?)", (self._clock(), _SLICE)
        )

    # -- dead letters ---------------------------------------------------------------------------

    def index(self, rows: Iterable[tuple[LetterHeader, Place]]) -> int:
        """Add dead letters; a call id that is already there is left alone."""
        self._begin()
        before = self._db.total_changes
        self._db.executemany(
            "INSERT OR IGNORE INTO dead_letters(call_id, client_request_id, session, reason,"
            " dropped_at, model, tenant, path, status, segment, offset, length)"
            " VALUES(?,?,?,?,?,?,?,?,?,?,?,?)",
            [
                (h.call_id, h.client_request_id, h.session, h.reason, h.dropped_at, h.model,
                 h.tenant, h.path, h.status, place.segment, place.offset, place.length)
                for h, place in rows
            ],
        )  # fmt: skip
        return self._db.total_changes - before

    def indexed(self, call_id: str) -> tuple[LetterHeader, Place] | None:
        """One dead letter of any status."""
        row = self._db.execute(
            f"SELECT {_COLUMNS}, segment, offset, length"  # noqa: S608
            " FROM dead_letters WHERE call_id=?",
            (call_id,),
        ).fetchone()
        return None if row is None else (LetterHeader(*row[:-3]), Place(*row[-3:]))

    def letters(self, limit: int, before: int | None, tenant: str | None) -> list[LetterHeader]:
        """Open dead letters, newest first, older than sequence ``before``."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM dead_letters WHERE status='open' AND seq<?"  # noqa: S608
            " AND (? IS NULL OR tenant=?) ORDER BY seq DESC LIMIT ?",
            (before if before is not None else 1 << 62, tenant, tenant, limit),
        )
        return [LetterHeader(*row) for row in rows]

    def oldest_letters(
        self, limit: int, session: str | None, since: float | None
    ) -> list[LetterHeader]:
        """Open dead letters in the order in which they were dropped."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM dead_letters INDEXED BY dead_letters_dropped"  # noqa: S608
            " WHERE status='open' AND dropped_at>=? AND (? IS NULL OR session=?)"
            " ORDER BY dropped_at, seq LIMIT ?",
            (since if since is not None else 0.0, session, session, limit),
        )
        return [LetterHeader(*row) for row in rows]

    def open_letters(self) -> int:
        """How many dead letters are open."""
        row = self._db.execute("SELECT count(*) FROM dead_letters WHERE status='open'").fetchone()
        return int(row[0])

    def set_status(self, call_id: str, status: str) -> bool:
        """Change a dead letter's status; False when there is no such letter."""
        self._begin()
        done = self._db.execute(
            "UPDATE dead_letters SET status=? WHERE call_id=?", (status, call_id)
        )
        return done.rowcount > 0

    def drop_segments(self, segments: Iterable[int]) -> None:
        """Forget the letters of deleted segment files."""
        self._begin()
        self._db.executemany(
            "DELETE FROM dead_letters WHERE segment=?", [(number,) for number in segments]
        )

    def drop_letters(self, call_ids: Iterable[str]) -> None:
        """Forget letters whose record is no longer in the log."""
        self._begin()
        self._db.executemany("DELETE FROM dead_letters WHERE call_id=?", [(c,) for c in call_ids])

    def trim_letters(self, rows: int) -> int:
        """Keep the newest ``rows`` letters; answers how many went."""
        self._begin()
        done = self._db.execute(
            "DELETE FROM dead_letters WHERE seq IN (SELECT seq FROM dead_letters ORDER BY seq"
            " LIMIT max(0, (SELECT count(*) FROM dead_letters) - ?))",
            (rows,),
        )
        return done.rowcount

    # -- other tables of the same database ------------------------------------------------------

    def read(self, sql: str, params: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Ask."""
        return self._db.execute(sql, params)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Let reads inside take so much processor time; then ``sqlite3.OperationalError``."""
        until = time.thread_time() + seconds
        self._db.set_progress_handler(lambda: time.thread_time() > until, STEPS)
        try:
            yield
        finally:
            self._db.set_progress_handler(None, 0)

    def write(self, sql: str, params: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Stage a change in this batch's transaction."""
        self._begin()
        return self._db.execute(sql, params)

    def write_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Stage one change per row."""
        self._begin()
        self._db.executemany(sql, rows)

    # -- marks and transactions -----------------------------------------------------------------

    def mark(self, name: str) -> str | None:
        """A remembered word."""
        row = self._db.execute("SELECT value FROM marks WHERE name=?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_mark(self, name: str, value: str) -> None:
        """Remember a word."""
        self._begin()
        self._db.execute("INSERT OR REPLACE INTO marks VALUES(?,?)", (name, value))

    def commit(self) -> None:
        """Make the batch durable."""
        if self._in_batch:
            self._in_batch = False
            self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the batch; the fill counts are taken again."""
        self.undone |= self._in_batch
        self._in_batch = False
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        with contextlib.suppress(sqlite3.Error):
            self._count()

    def set_durability(self, durability: Durability) -> None:
        """Change how hard a commit waits for the disk.

        What the batch holds is committed first: SQLite refuses the change inside a transaction.
        """
        self.commit()
        self._db.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability]}")

    def abandon(self) -> None:
        """Close a damaged database and move it out of the way."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        with contextlib.suppress(OSError):
            self._set_aside()

    def close(self) -> None:
        """Commit and close."""
        with contextlib.suppress(sqlite3.Error):
            self.commit()
        self._db.close()

    # -- inside ---------------------------------------------------------------------------------

    def _open(self, durability: Durability) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=0.1)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA journal_size_limit=16777216")
            self._db = db
            self.set_durability(durability)
            self._migrate()
            self._count()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _migrate(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise sqlite3.OperationalError(
                f"{self._path} has schema {version}, newer than {len(MIGRATIONS)}"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._db.executescript(f"BEGIN; {script}; PRAGMA user_version={number}; COMMIT;")

    def _count(self) -> None:
        evicted = {table: fill.evicted for table, fill in self.fills.items()}
        rows = self._db.execute("SELECT tbl, count(*), sum(size) FROM kv GROUP BY tbl")
        self.fills = {t: Fill(int(n), int(size), evicted.get(t, 0)) for t, n, size in rows}

    def _begin(self) -> None:
        if not self._in_batch:
            self._db.execute("BEGIN IMMEDIATE")
            self._in_batch = True

    def _forget(self, where: str, params: tuple[Any, ...]) -> int:
        gone = self._db.execute(
            f"DELETE FROM kv WHERE {where} RETURNING tbl, size",  # noqa: S608
            params,
        ).fetchall()
        for table, size in gone:
            fill = self.fills.setdefault(table, Fill())
            fill.rows -= 1
            fill.bytes -= size
        return len(gone)

    def _evict(self, table: str, fill: Fill) -> None:
        """Bring a table below nine tenths of its caps, so that eviction is not per row."""
        rows_left, bytes_left = self.caps.rows * 9 // 10, self.caps.bytes * 9 // 10
        while fill.rows and (fill.rows > rows_left or fill.bytes > bytes_left):
            slice_rows = min(_SLICE, max(1, fill.rows - rows_left))
            gone = self._forget(
                "rowid IN (SELECT rowid FROM kv WHERE tbl=? ORDER BY written_at LIMIT ?)",
                (table, slice_rows),
            )
            fill.evicted += gone
            if not gone:
                break

    def _set_aside(self) -> None:
        self._path.replace(self._path.with_name(self._path.name + ".corrupt"))
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
