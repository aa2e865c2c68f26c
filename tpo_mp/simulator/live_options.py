"""Options of a running simulator, changed: the file's, with a patch over them.

A patch is written as ``[simulator]`` is.  Tables are merged name by name; ``null`` gives an option
back to the file.

Invariants: what comes out passed the same checks as a file does; a credential is given as itself
here, never as a place to read it from; credentials are never shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from tpo_mp.config.check import Converter
from tpo_mp.config.problems import Problems
from tpo_mp.config.simulating import KIND, OF_A_BACKEND
from tpo_mp.config.values import Secret
from tpo_mp.errors import ConfigError, InvalidRequest
from tpo_mp.ports import BackendConfig

from .live import LiveState, composed, merged

C = TypeVar("C", bound=BackendConfig)
FIXED: Final = OF_A_BACKEND | {"models", "adapters"}
"""Options that only a file can change: routes are made of them."""


def patched(config: C, patch: Mapping[str, Any]) -> C:
    """``config`` with a patch over it; raises ``ConfigError`` with one line per problem."""
    problems = Problems()
    given: dict[str, Any] = {}
    for name, value in patch.items():
        if name in FIXED:
            problems.add(name, "cannot be changed while it runs")
        elif value is not None:
            given[name] = merged(_plain(getattr(config, name, None)), value)
    whole = {"name": config.name, "kind": config.kind, **given}
    made = _Literal({}, None, problems).convert(whole, type(config), "")
    problems.stop()
    assert made is not None
    after = msgspec.structs.replace(config, **{name: getattr(made, name) for name in given})
    for where, said in after.problems():
        problems.add(where, said)
    problems.stop()
    return after


def changed(
    state: LiveState,
    patch: Any,
    configs: list[BackendConfig],
    check: Callable[[BackendConfig, LiveState], object],
) -> LiveState:
    """``state`` with another patch; ``check`` builds what a config describes and throws it away.

    Raises ``InvalidRequest`` with path and reason when one of ``configs`` would not take it.
    """
    if not isinstance(patch, dict):
        raise InvalidRequest("the body must be an object of options")
    options = {n: v for n, v in composed(state.options, patch).items() if v is not None}
    try:
        for config in configs:
            check(patched(config, options), state)
    except ConfigError as error:
        where = error.message.partition(":")[0].partition(" ")[0]
        raise InvalidRequest(error.message, reason="invalid_config", param=where) from None
    return msgspec.structs.replace(state, options=options)


def shown(config: BackendConfig) -> dict[str, Any]:
    """The options of a simulator for people."""
    plain: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_masked)
    return {name: value for name, value in plain.items() if name not in OF_A_BACKEND}


def in_force(config: BackendConfig, patch: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a simulator runs with, for people.

    Those of the file are in force when it was reloaded and cannot take the patch any more.
    """
    return shown(effective(config, patch))


def effective(config: C, patch: Mapping[str, Any]) -> C:
    """What a simulator is built of: the file's options, if it cannot take the patch."""
    try:
        return patched(config, patch)
    except ConfigError:
        return config


def simulators(configs: tuple[BackendConfig, ...]) -> list[BackendConfig]:
    """Those of the backends that are simulators."""
    return [config for config in configs if config.kind == KIND]


class _Literal(Converter):
    """A converter that takes credentials as they are, and reads no file for them."""

    def _hook(self, kind: type, raw: object) -> object:
        if kind is Secret and not isinstance(raw, str):
            raise ValueError("expected the secret itself")
        return super()._hook(kind, raw)


def _plain(value: object) -> Any:
    return msgspec.to_builtins(value, enc_hook=_revealed)


def _revealed(value: object) -> object:
    assert isinstance(value, Secret), type(value).__name__
    return value.reveal()


def _masked(value: object) -> object:
    assert isinstance(value, Secret), type(value).__name__
    return "***"
