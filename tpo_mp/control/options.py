"""What control takes from the configuration, and the defaults before there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tpo_mp.config.blob import pipeline_view, probes, process_view, stage_options
from tpo_mp.config.certificate import expires_at
from tpo_mp.config.sections import (
    ObservabilitySection,
    PipelineSection,
    ReplaySection,
    ServerSection,
    StoreSection,
)
from tpo_mp.pipeline.breaker_rows import Serving
from tpo_mp.pipeline.edges import places
from tpo_mp.pipeline.routing import named_models
from tpo_mp.ports import Probe
from tpo_mp.store.job_table import JobCaps
from tpo_mp.store.letters import LetterCaps
from tpo_mp.store.sealing import Seals
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.shelf import ShelfOptions
from tpo_mp.store.tables import TableCaps

if TYPE_CHECKING:
    from tpo_mp.stages.rag import Config as RagConfig


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
    rag: RagConfig | None
    """Folders of documents, and how many these may be; ``None`` without the stage."""
    backends: tuple[str, ...] = ()
    served: tuple[Serving, ...] = ()
    """The backends with the models they are known for."""
    models: tuple[str, ...] = ()
    """Those that the configuration names."""
    engines: tuple[str, ...] = ()
    """Those that the host starts itself."""
    probes: tuple[Probe, ...] = ()
    """How the backends are asked whether they are well; not all of them are."""


def read_options(blob: bytes | None) -> ControlOptions:
    """Read a compiled configuration; raises what ``process_view`` raises."""
    if blob is None:
        sections = ServerSection(), StoreSection(), ObservabilitySection(), PipelineSection()
        return _options(*sections, None)
    view = process_view(blob)
    rag = stage_options(blob, "rag")
    options = _options(view.server, view.store, view.observability, pipeline_view(blob), rag)
    names = tuple(backend.name for backend in view.backends)
    engines = tuple(engine.name for engine in view.engines)
    models = tuple(named_models(view.backends))
    return replace(
        options, backends=names, served=tuple(view.backends), models=models, engines=engines,
        probes=probes(blob),
    )  # fmt: skip


def _options(
    server: ServerSection,
    store: StoreSection,
    observability: ObservabilitySection,
    pipeline: PipelineSection,
    rag: RagConfig | None,
) -> ControlOptions:
    shelf = ShelfOptions(
        durability=store.durability,
        calls=LogLimits(store.segment_bytes, store.records_bytes, store.records_age_s),
        letters=LogLimits(store.segment_bytes, store.dead_letter_bytes, store.dead_letter_age_s),
        letter_caps=LetterCaps(
            rows=store.dead_letters,
            redact=store.dead_letter_bodies == "redacted",
            seals=Seals([key.reveal() for key in store.encryption_keys]),
        ),
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
        rag=rag,
    )
