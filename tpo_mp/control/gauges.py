"""Control's own series: fill levels and faults of the store, the rings and the harvest."""

from __future__ import annotations

from collections.abc import Mapping

from tpo_mp.ports import Counter, Metrics
from tpo_mp.store.shelf import ShelfState

PARTS = ("calls", "letters", "tables")
_COUNTERS = {
    "tpo_dlq_write_errors_total": "Failed writes or syncs of the dead-letter log.",
    "tpo_dlq_dropped_total": "Dead letters lost because memory was full while the disk refused.",
    "tpo_record_write_errors_total": "Failed writes or syncs of the call-record log.",
    "tpo_record_batches_dropped_total": "Batches of call records lost while the disk refused.",
    "tpo_store_errors_total": "Failed operations of the database.",
    "tpo_store_cut_bytes_total": "Bytes of torn tails cut off segment files.",
    "tpo_control_batches_total": "Batches of call records received.",
    "tpo_control_malformed_total": "Ring records that could not be understood.",
    "tpo_control_ring_corrupt_total": "Damaged records on rings to control.",
    "tpo_control_ring_stale_total": "Records of dead occupants on rings to control.",
    "tpo_control_answers_refused_total": "Answers dropped because outboxes were full.",
    "tpo_control_letters_total": "Dead letters reported by workers.",
    "tpo_harvest_letters_total": "Calls of dead processes that became dead letters.",
    "tpo_harvest_reruns_total": "Calls of dead processes that were given to another worker.",
    "tpo_open_copy_errors_total": "Failed writes or syncs of the copy of the open calls.",
    "tpo_open_copy_cut_total": "Open calls copied without their body: the copy was full.",
    "tpo_job_prompts_ended_total": "Prompts of batch jobs that workers brought to an end.",
    "tpo_job_prompts_put_back_total": "Prompts of batch jobs taken back from a worker to wait.",
    "tpo_dlq_replays_total": "Attempts to ask a dead letter again that control began.",
    "tpo_dlq_replays_repeated_total": "Those whose end is not known, so that another follows.",
    "orchestrator_dlq_aged_out_total": "Dead letters given up for their age.",
    "tpo_access_lines_dropped_total": "Batches missing in the access log.",
    "tpo_counts_restored_total": "Counts that an earlier run of the host had written down.",
    "tpo_counts_written_total": "Counts written down because they had changed.",
}


class ControlGauges:
    """Mirrors snapshots into the metrics block; counters are moved by their difference."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counters: dict[str, Counter] = {
            n: metrics.counter(n, h) for n, h in _COUNTERS.items()
        }
        self._last: dict[str, int] = {}
        self._letters = metrics.gauge("tpo_dead_letters", "Open dead letters.")
        self._letter_bytes = metrics.gauge("tpo_dead_letter_bytes", "Bytes of the dead-letter log.")
        self._record_bytes = metrics.gauge("tpo_record_bytes", "Bytes of the call-record log.")
        self._copied = metrics.gauge("tpo_open_copy_calls", "Open calls whose copy is on disk.")
        self._copy_bytes = metrics.gauge("tpo_open_copy_bytes", "Bytes of that copy's file.")
        self._jobs_open = metrics.gauge("tpo_jobs_open", "Batch jobs with prompts left.")
        self._jobs_running = metrics.gauge("tpo_job_prompts_running", "Batch prompts running.")
        self._job_rows = metrics.gauge("tpo_jobs", "Batch jobs kept.")
        self._job_bytes = metrics.gauge("tpo_job_bytes", "Bytes of batch jobs.")
        self._limit = metrics.gauge("tpo_open_calls_limit", "Open calls allowed on this host.")
        self._broken = {
            part: metrics.gauge("tpo_store_broken", "1 while a part cannot write.", part=part)
            for part in PARTS
        }
        self._copy_broken = metrics.gauge(
            "tpo_store_broken", "1 while a part cannot write.", part="open_calls"
        )

    def set_limit(self, max_open_calls: int) -> None:
        """Show the configured limit."""
        self._limit.set(max_open_calls)

    def set_certificate(self, expires_at: float | None) -> None:
        """Show when the main port's certificate expires; without one there is no such series."""
        if expires_at is not None:
            self._metrics.gauge(
                "tpo_tls_certificate_expires_seconds",
                "Epoch second at which the certificate of the main port expires.",
            ).set(expires_at)

    def count(self, totals: Mapping[str, int]) -> None:
        """Move counters to new totals."""
        for name, total in totals.items():
            step = total - self._last.get(name, 0)
            if step > 0:
                self._counters[name].inc(step)
            self._last[name] = total

    def show_jobs(self, *, open: int, running: int) -> None:
        """Show how busy batch jobs keep the host."""
        self._jobs_open.set(open)
        self._jobs_running.set(running)

    def show_copy(self, *, calls: int, file_bytes: int, broken: bool) -> None:
        """Show the copy of the open calls."""
        self._copied.set(calls)
        self._copy_bytes.set(file_bytes)
        self._copy_broken.set(broken)

    def show(self, state: ShelfState) -> None:
        """Show the store's levels."""
        self._letters.set(state.letters_open)
        self._letter_bytes.set(state.letters_bytes)
        self._record_bytes.set(state.calls_bytes)
        self._job_rows.set(state.jobs)
        self._job_bytes.set(state.job_bytes)
        for part, gauge in self._broken.items():
            gauge.set(part in state.broken)
        self.count(
            {
                "tpo_dlq_write_errors_total": state.letter_write_errors,
                "tpo_dlq_dropped_total": state.letters_dropped,
                "tpo_record_write_errors_total": state.call_write_errors,
                "tpo_record_batches_dropped_total": state.calls_dropped,
                "tpo_store_errors_total": state.table_errors,
                "tpo_store_cut_bytes_total": state.cut_bytes,
            }
        )
        for table, rows, size, _ in state.tables:
            self._metrics.gauge("tpo_store_rows", "Rows of a table.", table=table).set(rows)
            self._metrics.gauge("tpo_store_bytes", "Bytes of a table.", table=table).set(size)
        self._evictions(state)

    def _evictions(self, state: ShelfState) -> None:
        for table, _, _, evicted in state.tables:
            key = f"evicted {table}"
            step = evicted - self._last.get(key, 0)
            if step > 0:
                self._metrics.counter(
                    "tpo_store_evicted_total", "Rows evicted because a table was full.", table=table
                ).inc(step)
            self._last[key] = evicted
