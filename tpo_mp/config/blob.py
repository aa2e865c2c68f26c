"""A config as one msgpack blob: compiled once by a short-lived child, read by every process.

The blob is ``{version, process, features}``.  ``process`` is all the supervisor reads, so it needs
no feature; ``features`` stays raw bytes until a worker or control asks for the whole tree.

Invariants: upstreams' secrets are inside and resolved, so a blob lives in anonymous memory only;
of our own keys only digests are; a blob of another ``BLOB_VERSION`` is refused.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from tpo_mp import registry
from tpo_mp.errors import ConfigError
from tpo_mp.ports import BackendConfig, Probe

from .api_keys import digest
from .engines import EngineSection
from .prices import PricesSection
from .sections import (
    AuthKey,
    AuthSection,
    DistributedSection,
    ObservabilitySection,
    PipelineSection,
    RingsSection,
    ServerSection,
    StoreSection,
    SupervisorSection,
)
from .tree import Config, RouteRule
from .values import Secret, SecretSource

T = TypeVar("T")

BLOB_VERSION: Final = 1
BLOB_LIMIT_BYTES: Final = (4 << 20) - 4096
"""Half of the config epoch buffer, less its headers."""


class BackendView(Struct, frozen=True, array_like=True):
    """What an operator is shown of a backend without importing its kind."""

    name: str
    kind: str
    models: tuple[str, ...]
    model_map: tuple[str, ...] = ()
    """Names that it renames."""


class ProcessView(Struct, frozen=True, kw_only=True):
    """The part of a blob that concerns processes, not calls."""

    server: ServerSection
    supervisor: SupervisorSection
    rings: RingsSection
    store: StoreSection
    observability: ObservabilitySection
    distributed: DistributedSection | None
    ops_port_given: bool
    warnings: tuple[str, ...]
    backends: tuple[BackendView, ...]
    engines: tuple[EngineSection, ...]


class _Route(Struct, frozen=True):
    models: tuple[str, ...]
    strategy: str
    backends: tuple[str, ...]
    options: Raw


class _Features(Struct, frozen=True, kw_only=True):
    pipeline: PipelineSection
    auth: AuthSection
    prices: PricesSection
    backends: tuple[tuple[str, Raw], ...]
    probes: tuple[Probe, ...]
    routes: tuple[_Route, ...]
    stages: tuple[tuple[str, Raw], ...]
    surfaces: tuple[tuple[str, Raw], ...]


class _Blob(Struct, frozen=True, kw_only=True):
    version: int
    process: Raw
    features: Raw


def _plain(value: object) -> object:
    if isinstance(value, Secret):
        return (value.reveal(), value.source, value.name)
    raise TypeError(f"{type(value).__name__} has no place in a config")


def _rebuild(kind: type, value: Any) -> Secret:
    assert kind is Secret, kind
    text, source, name = value
    return Secret(text, cast("SecretSource", source), name)  # written by _plain


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode


def _raw(value: object) -> Raw:
    return Raw(_encode(value))


def to_blob(config: Config) -> bytes:
    """Compile a config; raises ``ConfigError`` when it does not fit its buffer."""
    process = ProcessView(
        server=config.server,
        supervisor=config.supervisor,
        rings=config.rings,
        store=config.store,
        observability=config.observability,
        distributed=config.distributed,
        ops_port_given=config.ops_port_given,
        warnings=config.warnings,
        backends=tuple(
            BackendView(b.name, b.kind, b.models, tuple(b.model_map)) for b in config.backends
        ),
        engines=config.engines,
    )
    features = _Features(
        pipeline=config.pipeline,
        auth=_digests_only(config.auth),
        prices=config.prices,
        backends=tuple((b.kind, _raw(b)) for b in config.backends),
        probes=tuple(probe for b in config.backends if (probe := b.probe()) is not None),
        routes=tuple(
            _Route(r.models, r.strategy, r.backends, _raw(r.options)) for r in config.routes
        ),
        stages=tuple((name, _raw(config.stages[name])) for name in config.stage_order),
        surfaces=tuple((name, _raw(options)) for name, options in config.surfaces.items()),
    )
    blob = _encode(_Blob(version=BLOB_VERSION, process=_raw(process), features=_raw(features)))
    if len(blob) > BLOB_LIMIT_BYTES:
        raise ConfigError(f"the compiled config has {len(blob)} bytes, over {BLOB_LIMIT_BYTES}")
    return blob


def _digests_only(auth: AuthSection) -> AuthSection:
    """What a worker needs to know a key by; the keys themselves stay in the child."""
    pepper = auth.pepper.reveal().encode() if auth.pepper is not None else b""

    def kept(key: AuthKey) -> AuthKey:
        if key.secret is None:
            return key
        found = digest(key.secret.reveal().encode(), pepper).hex()
        return replace(key, secret=None, hash=found)

    return replace(auth, keys=tuple(map(kept, auth.keys)))


def process_view(blob: bytes | memoryview) -> ProcessView:
    """Read the process part of a blob; imports no feature."""
    return _decode(_open(blob).process, ProcessView)


def pipeline_view(blob: bytes | memoryview) -> PipelineSection:
    """Read the pipeline's own section of a blob; imports no feature."""
    return _decode(_open(blob).features, _Features).pipeline


def probes(blob: bytes | memoryview) -> tuple[Probe, ...]:
    """How control asks backends whether they are well; imports no feature."""
    return _decode(_open(blob).features, _Features).probes


def stage_options(blob: bytes | memoryview, name: str) -> Any:
    """The options of one stage, ``None`` when it does not run; imports no other feature."""
    for found, raw in _decode(_open(blob).features, _Features).stages:
        if found == name:
            return _decode(raw, registry.find("stages", name).Config)
    return None


def from_blob(blob: bytes | memoryview) -> Config:
    """Read a whole blob; imports the features it names.  Raises ``ConfigError``."""
    opened = _open(blob)
    view = _decode(opened.process, ProcessView)
    features = _decode(opened.features, _Features)
    return Config(
        server=view.server,
        supervisor=view.supervisor,
        rings=view.rings,
        store=view.store,
        observability=view.observability,
        distributed=view.distributed,
        ops_port_given=view.ops_port_given,
        warnings=view.warnings,
        pipeline=features.pipeline,
        auth=features.auth,
        prices=features.prices,
        engines=view.engines,
        backends=tuple(_backend(kind, raw) for kind, raw in features.backends),
        routes=tuple(_route(route) for route in features.routes),
        stages={
            name: _decode(raw, registry.find("stages", name).Config)
            for name, raw in features.stages
        },
        stage_order=tuple(name for name, _ in features.stages),
        surfaces={
            name: _decode(raw, registry.find("surfaces", name).Config)
            for name, raw in features.surfaces
        },
    )


def _open(blob: bytes | memoryview) -> _Blob:
    try:
        opened = msgspec.msgpack.decode(blob, type=_Blob)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"not a compiled config: {error}") from None
    if opened.version != BLOB_VERSION:
        raise ConfigError(
            f"compiled config has version {opened.version}, this program reads {BLOB_VERSION}",
            reason="config_version",
        )
    return opened


def _decode(raw: Raw, kind: type[T]) -> T:
    return msgspec.msgpack.decode(raw, type=kind, dec_hook=_rebuild)


def _backend(kind: str, raw: Raw) -> BackendConfig:
    config = _decode(raw, registry.find("backends", kind).Config)
    assert isinstance(config, BackendConfig)
    return config


def _route(route: _Route) -> RouteRule:
    options = _decode(route.options, registry.find("routes", route.strategy).Config)
    return RouteRule(
        models=route.models, strategy=route.strategy, backends=route.backends, options=options
    )
