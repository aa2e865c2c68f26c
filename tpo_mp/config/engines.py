"""``[[engines]]``: model servers that this host starts itself, each the backend of its name.

An engine becomes an entry of ``[[backends]]`` that is reached on a loopback port; an entry of that
name which stands there already adds to it (``model_map``, ``weight``, ``timeouts``, …).

What the command line of a kind is, a package says behind the entry point group ``tpo_mp.engines``:
an ``EngineKind``, whose ``build`` is ``(EngineSection, cpus) -> EngineCommand`` and may raise
``EngineRefused``.

Invariants: a port that nobody chose is the engine's own for as long as the host runs, and lies
outside the range that the kernel gives to connections: a client of a port nobody listens at could
otherwise meet itself there.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta

from . import catalog
from .check import Converter
from .problems import Problems, suggestion
from .text import Tree
from .values import Secret, Section

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

HOST: Final = "127.0.0.1"
ENGINE_RINGS: Final = "TPO_ENGINE_RINGS"
"""Where an engine that can answer over shared memory is told its dock there."""
HEALTH_PATH: Final = "/health"
GROUP: Final = "tpo_mp.engines"
KINDS: Final = ("mlx", "llama_cpp", "vllm")
"""Kinds that ``--backend KIND --model MODEL`` starts."""
_LOWEST_PORT: Final = 20_000
_PORTS: Final = 12_000
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LINE = r"^[^\x00-\x1f\x7f]*$(?!\n)"

Argument: TypeAlias = Annotated[str, Meta(max_length=32_768, pattern=r"^[^\x00]*$")]


class EngineSection(Section, frozen=True, kw_only=True):
    """A model server that this host starts, watches and restarts; the backend of its name."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=32,
            pattern=r"^[A-Za-z0-9._-]+$(?!\n)",
            description="Unique name; also that of its backend.",
        ),
    ]
    kind: Annotated[
        str,
        Meta(
            max_length=64,
            description="mlx, llama_cpp or vllm, whose command is known; any other with a command "
            "of yours, and then the kind of backend it is spoken to as.",
        ),
    ] = "openai"
    model: Annotated[
        str,
        Meta(
            max_length=4096,
            pattern=_LINE,
            description="Folder, file or repository of the model it loads.",
        ),
    ] = ""
    models: Annotated[
        tuple[str, ...],
        Meta(description="Model names clients ask for; empty: model, and the last part of it."),
    ] = ()
    command: Annotated[
        tuple[Argument, ...],
        Meta(
            description="Command line instead of the kind's own; {model}, {host}, {port} and "
            "{name} in it are replaced.",
        ),
    ] = ()
    args: Annotated[
        tuple[Argument, ...], Meta(description="Arguments after those of the command.")
    ] = ()
    env: Annotated[
        dict[str, Secret], Meta(description="Environment variables it gets besides.")
    ] = {}  # noqa: RUF012 - frozen
    port: Annotated[
        int, Meta(ge=0, le=65_535, description="Port on loopback; 0 picks a free one.")
    ] = 0
    cores: Annotated[
        int,
        Meta(ge=0, le=4096, description="Cores of its own; 0 is a share of what workers leave."),
    ] = 0
    gpus: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=1023)], ...],
        Meta(description="Numbers of the GPUs it sees; empty: all."),
    ] = ()
    memory_limit_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 50,
            description="Memory all its processes may hold; beyond it is killed and started "
            "again. 0: no limit.",
        ),
    ] = 0
    restart: Annotated[
        Literal["always", "on_failure", "never"],
        Meta(description="When it is started again after it ended by itself."),
    ] = "always"
    health_path: Annotated[
        str,
        Meta(
            max_length=512,
            pattern=r"^(/[!-~]*)?$(?!\n)",
            description="Path that answers 200 once it can serve; empty: its port is open.",
        ),
    ] = HEALTH_PATH
    health_interval_s: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds between two such questions.")
    ] = 2.0
    start_timeout_s: Annotated[
        float,
        Meta(gt=0, le=86_400, description="Seconds it may take to load before it is given up."),
    ] = 600.0
    hung_after_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Seconds without an answer after which a ready one is killed and started "
            "again; 0: never.",
        ),
    ] = 120.0
    stop_grace_s: Annotated[
        float, Meta(ge=0, le=3600, description="Seconds between asking it to end and killing it.")
    ] = 10.0
    warm_up: Annotated[
        bool, Meta(description="Ask for one token before it counts as ready; needs model.")
    ] = True
    rings: Annotated[
        bool,
        Meta(
            description="Ask it over shared memory where it can be (kind mlx); false: by HTTP only."
        ),
    ] = True
    log_bytes: Annotated[
        int,
        Meta(
            ge=4096,
            le=1 << 32,
            description="Size at which its log file is closed and a new one begun; one old one "
            "is kept.",
        ),
    ] = 8 << 20


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How a kind's engine is started: command line, and variables it needs.

    ``rings``: it can be asked over shared memory, as ``ENGINE_RINGS`` tells it.  ``health_path`` is
    where it answers 200 where that is not the path of all others (``/health``).
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    rings: bool = False
    health_path: str = ""


class EngineRefused(Exception):
    """An engine cannot be started here; the message is one line for people."""


Build: TypeAlias = Callable[[EngineSection, Sequence[int]], EngineCommand]


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What a package says of a kind: its command, and the kind of backend that speaks with it.

    No such kind: a backend of the engine's kind does.  ``needs`` answers what that backend's entry
    says where the file says nothing else; it is given what the file says of engine and backend.
    """

    build: Build
    client: str = ""
    needs: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] = lambda *_: {}


@cache
def _points() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def known_kind(kind: str) -> EngineKind | None:
    """What some package says of a kind; raises ``EngineRefused`` for one that cannot be loaded."""
    point = _points().get(kind)
    if point is None:
        return None
    try:
        found = point.load()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise EngineRefused(f"kind {kind!r} ({point.value}) cannot be loaded: {said}") from error
    if not isinstance(found, EngineKind):
        raise EngineRefused(f"kind {kind!r} ({point.value}) is no EngineKind")
    return found


def known_kinds() -> list[str]:
    """Kinds whose command some package knows."""
    return sorted(_points())


def command_of(engine: EngineSection, cpus: Sequence[int] = ()) -> EngineCommand:
    """The command line of an engine; raises ``EngineRefused``."""
    if engine.command:
        made = EngineCommand(engine.command)
    else:
        kind = known_kind(engine.kind)
        if kind is None:
            raise EngineRefused(f"kind {engine.kind!r} has no command of its own; set command")
        made = kind.build(engine, cpus)
    words = (*made.argv, *engine.args)
    return replace(made, argv=tuple(_filled(word, engine) for word in words))


def _filled(word: str, engine: EngineSection) -> str:
    for name, value in (("model", engine.model), ("host", HOST), ("port", str(engine.port)),
                        ("name", engine.name)):  # fmt: skip
        word = word.replace(f"{{{name}}}", value)
    return word


def resolve(tree: Tree, ports: Mapping[str, int], problems: Problems) -> None:
    """Give every engine a port and an entry in ``[[backends]]``; ``ports`` are those in use."""
    tables = [table for table in tree.get("engines", ()) if isinstance(table, dict)]
    if not tables:
        return
    backends = tree.setdefault("backends", [])
    if not isinstance(backends, list):
        return
    taken = {table["port"] for table in tables if isinstance(table.get("port"), int)}
    taken |= set(ports.values())
    seen: set[str] = set()
    for index, table in enumerate(tables):
        name = table.get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            problems.add_value(f"engines[{index}].name", name, "another engine has this name")
            continue
        seen.add(name)
        if not table.get("port"):
            table["port"] = ports.get(name) or free_port(taken)
            taken.add(table["port"])
        _check_command(index, table, problems)
        _backend(index, table, backends, problems)


def convert(tables: Sequence[Tree], converter: Converter) -> tuple[EngineSection, ...]:
    """Answer the settings of every engine."""
    made = (
        converter.convert(table, EngineSection, f"engines[{index}]")
        for index, table in enumerate(tables)
    )
    return tuple(engine for engine in made if engine is not None)


def _check_command(index: int, table: Tree, problems: Problems) -> None:
    kind = table.get("kind", "openai")
    if table.get("command") or not isinstance(kind, str):
        return
    if kind not in known_kinds():
        hint = suggestion(kind, known_kinds())
        problems.add_value(
            f"engines[{index}].kind", kind, f"has no command of its own: set command; {hint}"
        )
    elif not table.get("model"):
        problems.add(f"engines[{index}].model", "required: what this engine loads")


def _backend(index: int, table: Tree, backends: list[Any], problems: Problems) -> None:
    name, kind = table["name"], table.get("kind", "openai")
    url = f"http://{HOST}:{table['port']}/v1"
    entry = next((b for b in backends if isinstance(b, dict) and b.get("name") == name), None)
    if entry is None:
        entry = {"name": name}
        problems.origins[f"backends[{len(backends)}]"] = f"engines[{index}]"
        backends.append(entry)
    elif entry.get("base_url", url) != url:
        problems.add_value(
            f"engines[{index}].name", name, "a backend of this name has a base_url of its own"
        )
    entry["base_url"] = url
    entry.setdefault("kind", _client(kind) if not table.get("command") else _built(kind))
    if not table.get("command"):
        for key, value in _needs(kind, table, entry).items():
            entry.setdefault(key, value)
    if "models" not in entry:
        entry["models"] = list(_served(table))
    if table.get("health_path", HEALTH_PATH):
        asked = {"enabled": True, "path": table.get("health_path", HEALTH_PATH), "interval_s": 1.0}
        entry.setdefault("health", asked)
    _name_models(table, entry)


def _name_models(table: Tree, entry: Tree) -> None:
    """Call the model upstream as the engine does, which knows one name only."""
    names = [n for n in _served(table) if not set(n) & set("*?[")]
    own = entry.setdefault("model_map", {})
    if table.get("command") or not isinstance(own, dict) or not names:
        return
    for name in names[1:]:
        own.setdefault(name, names[0])


def _client(kind: str) -> str:
    """The kind of backend that speaks with an engine started by its kind's own command."""
    try:
        found = known_kind(kind)
    except EngineRefused:
        found = None  # said when it is started
    return (found.client if found else "") or _built(kind)


def _needs(kind: str, table: Tree, entry: Tree) -> Mapping[str, Any]:
    try:
        found = known_kind(kind)
    except EngineRefused:
        return {}
    return found.needs(table, entry) if found else {}


def _built(kind: str) -> str:
    return kind if catalog.is_built("backends", kind) else "openai"


def _served(table: Tree) -> Sequence[str]:
    models, model = table.get("models"), table.get("model")
    if models:
        return list(models) if isinstance(models, list | tuple) else [models]
    if not isinstance(model, str) or not model:
        return ["*"]
    return list(dict.fromkeys([model, Path(model).name or model]))


def free_port(taken: Collection[int]) -> int:
    """A port of loopback that nobody has, outside the range of the kernel's own choice."""
    first, last = _ephemeral()
    start = random.randrange(_PORTS)  # noqa: S311 - so that two hosts seldom try the same
    for step in range(_PORTS):
        port = _LOWEST_PORT + (start + step) % _PORTS
        if port in taken or first <= port <= last:
            continue
        if port_is_free(port):
            return port
    with socket.socket() as any_port:
        any_port.bind((HOST, 0))
        return int(any_port.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen at a port of loopback now."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError:
            return False
    return True


def _ephemeral() -> tuple[int, int]:
    try:
        first, last = _EPHEMERAL.read_text().split()
        return int(first), int(last)
    except (OSError, ValueError):
        return 49_152, 65_535
