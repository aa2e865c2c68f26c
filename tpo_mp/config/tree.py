"""The loaded config: process sections, and the options of every configured feature.

Invariants: frozen; nothing mutates in place, a reload builds another tree; secrets are resolved and
never shown by ``repr``.
"""

from __future__ import annotations

from msgspec import Struct

from tpo_mp.ports import BackendConfig

from .engines import EngineSection
from .prices import PricesSection
from .sections import (
    AuthSection,
    DistributedSection,
    ObservabilitySection,
    PipelineSection,
    RingsSection,
    ServerSection,
    StoreSection,
    SupervisorSection,
)


class RouteRule(Struct, frozen=True, kw_only=True):
    """One route: which backends serve which models, how one is picked, and that way's options."""

    models: tuple[str, ...]
    strategy: str
    backends: tuple[str, ...]
    options: Struct | None = None


class Defaults(Struct, frozen=True):
    """Options of a surface that was given none: whoever reads the blob has them of the surface."""


class Config(Struct, frozen=True, kw_only=True):
    """Everything one gateway was told.

    ``stage_order`` names the stages of the chain, outermost first; ``stages`` holds their options.
    ``surfaces`` holds those of the surfaces that are served.
    ``ops_port_given`` tells a chosen ops port from the default one; ``warnings`` are for people.
    """

    server: ServerSection = ServerSection()
    supervisor: SupervisorSection = SupervisorSection()
    pipeline: PipelineSection = PipelineSection()
    rings: RingsSection = RingsSection()
    store: StoreSection = StoreSection()
    observability: ObservabilitySection = ObservabilitySection()
    distributed: DistributedSection | None = None
    auth: AuthSection = AuthSection()
    prices: PricesSection = PricesSection()
    backends: tuple[BackendConfig, ...] = ()
    engines: tuple[EngineSection, ...] = ()
    routes: tuple[RouteRule, ...] = ()
    stages: dict[str, Struct] = {}
    stage_order: tuple[str, ...] = ()
    surfaces: dict[str, Struct] = {}
    ops_port_given: bool = False
    warnings: tuple[str, ...] = ()
