"""What control takes from the configuration, and the defaults before there is one."""

from __future__ import annotations

from dataclasses import dataclass

from tpo_mp.config.blob import pipeline_view, process_view
from tpo_mp.config.certificate import expires_at
from tpo_mp.config.sections import (
    ObservabilitySection,
    PipelineSection,
    ReplaySection,
    ServerSection,
    StoreSection,
)
from tpo_mp.pipeline.edges import places
from tpo_mp.store.job_table import JobCaps
from tpo_mp.store.letters import LetterCaps
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.shelf import ShelfOptions
from tpo_mp.store.tables import TableCaps


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """One configuration, as control sees it."""

    shelf: ShelfOptions
    observability: ObservabilitySection
    max_open_calls: int
    certificate_expires_at: float | None
    open_copy_bytes: int
    job_concurrency: int
    replay: ReplaySection
    places: dict[str, int]
    """Capacity of the waiting room in front of each stage."""


def read_options(blob: bytes | None) -> ControlOptions:
    """Read a compiled configuration; raises what ``process_view`` raises."""
    if blob is None:
        return _options(ServerSection(), StoreSection(), ObservabilitySection(), PipelineSection())
    view = process_view(blob)
    return _options(view.server, view.store, view.observability, pipeline_view(blob))


def _options(
    server: ServerSection,
    store: StoreSection,
    observability: ObservabilitySection,
    pipeline: PipelineSection,
) -> ControlOptions:
    shelf = ShelfOptions(
        durability=store.durability,
        calls=LogLimits(store.segment_bytes, store.records_bytes, store.records_age_s),
        letters=LogLimits(store.segment_bytes, store.dead_letter_bytes, store.dead_letter_age_s),
        letter_caps=LetterCaps(rows=store.dead_letters),
        tables=TableCaps(rows=store.results, age_s=store.result_age_s),
        jobs=JobCaps(jobs=store.jobs, bytes=store.job_bytes, age_s=store.job_age_s),
    )
    return ControlOptions(
        shelf=shelf,
        observability=observability,
        max_open_calls=server.max_open_calls,
        certificate_expires_at=expires_at(server.tls),
        open_copy_bytes=store.open_calls_bytes,
        job_concurrency=store.job_concurrency,
        replay=store.replay,
        places=places(pipeline.edges),
    )
