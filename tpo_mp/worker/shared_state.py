"""What all processes of the host see alike, attached by a worker from its handoff.

One table of byte-range locks guards all of it; each segment's module says how its bytes lie.
"""

from __future__ import annotations

from tpo_mp.ports import Metrics
from tpo_mp.shm.cache import SharedCache
from tpo_mp.shm.claims import ClaimSegment, SharedClaims
from tpo_mp.shm.handoff import Handoff
from tpo_mp.shm.journal import JournalSegment, SharedJournal
from tpo_mp.shm.ledger import LEDGER_ROWS, SharedLedger
from tpo_mp.shm.live import LiveSegment, LiveText
from tpo_mp.shm.plane import Plane
from tpo_mp.shm.prefixes import PrefixSegment, SharedPrefixes
from tpo_mp.shm.quotas import SharedQuotas
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.scores import SCORES_REFUSED, SharedScores
from tpo_mp.shm.shares import SharedShares


class SharedState:
    """The host's rows, quotas, shares, scores, claims, journal, live text and cache."""

    def __init__(self, handoff: Handoff, plane: Plane, metrics: Metrics) -> None:
        seat = handoff.seat
        table = RowTable.attach(handoff.ledger_fd, handoff.locks_fd, LEDGER_ROWS)
        self.ledger = SharedLedger(table, metrics)
        self.quotas = SharedQuotas.of_host(handoff.quotas_fd, table, plane, seat, metrics)
        self.live = LiveText(LiveSegment.attach(handoff.live_fd), table)
        self.journal = SharedJournal(
            JournalSegment.attach(handoff.journal_fd),
            table,
            metrics.counter("tpo_journal_dropped_total", "Journal entries left out."),
        )
        self.shares = SharedShares.of_host(handoff.shares_fd, table, plane, seat)
        self.scores = SharedScores.of_host(
            handoff.scores_fd, table, plane, seat, metrics.counter(*SCORES_REFUSED)
        )
        self.claims = SharedClaims.of_host(
            ClaimSegment.attach(handoff.claims_fd), table, plane, seat
        )
        self.cache = SharedCache.of_host(handoff.cache_fd, table, seat)
        self.prefixes = SharedPrefixes(PrefixSegment.attach(handoff.prefixes_fd), table)
