"""Rules between settings that no single bound can say.

Invariants: each rule looks at checked structs only and words its own remedy.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.ports import BackendConfig

from . import catalog
from .problems import Problems
from .sections import AuthSection, ServerSection, SupervisorSection
from .values import check_url, is_loopback

KEY_CHARACTERS: Final = 16


def bind(server: ServerSection, auth: AuthSection, problems: Problems) -> None:
    """A public address needs working authentication, or an explicit word that it does not."""
    if server.insecure or is_loopback(server.host):
        return
    if not auth.enabled:
        problems.add_value(
            "server.host",
            server.host,
            "not a loopback address: set auth.enabled, or pass --insecure",
        )
    elif not catalog.is_built("stages", "auth"):
        problems.add_value(
            "server.host",
            server.host,
            "not a loopback address, and auth is not built yet: pass --insecure, or bind 127.0.0.1",
        )


def keys(auth: AuthSection, problems: Problems) -> None:
    """Keys have names and values of their own, long enough not to be guessed."""
    if (auth.enabled or auth.keys) and not catalog.is_built("stages", "auth"):
        problems.warn("auth: not built yet, ignored")
    names: set[str] = set()
    values: set[str] = set()
    for index, key in enumerate(auth.keys):
        path = f"auth.keys[{index}]"
        value = key.secret.reveal()
        if key.secret.from_client:
            problems.add(f"{path}.secret", "a key of ours cannot be the caller's own")
        elif len(value) < KEY_CHARACTERS:
            problems.add(f"{path}.secret", f"shorter than {KEY_CHARACTERS} characters")
        elif value in values:
            problems.add(f"{path}.secret", "another key has this value")
        if key.id in names:
            problems.add_value(f"{path}.id", key.id, "another key has this name")
        names.add(key.id)
        values.add(value)


def supervision(supervisor: SupervisorSection, problems: Problems) -> None:
    """A back-off cannot begin above its own ceiling."""
    if supervisor.backoff_min_s > supervisor.backoff_max_s:
        problems.add_value(
            "supervisor.backoff_min_s", supervisor.backoff_min_s, "over supervisor.backoff_max_s"
        )


def ports(server: ServerSection, problems: Problems) -> None:
    """Main port and ops port are two."""
    if server.port and server.port == server.ops_port:
        problems.add_value("server.ops_port", server.ops_port, "the same as server.port")


def upstream(index: int, backend: BackendConfig, server: ServerSection, problems: Problems) -> None:
    """An upstream URL is well formed, no metadata service, and not ourselves."""
    url = getattr(backend, "base_url", None)
    if not isinstance(url, str):
        return
    path = f"backends[{index}].base_url"
    try:
        host, port = check_url(url)
    except ValueError as error:
        problems.add_value(path, url, str(error))
        return
    ours = host == server.host or (is_loopback(host) and _local(server.host))
    if ours and port in {server.port, server.ops_port}:
        problems.add_value(path, url, "this is our own address: the gateway would call itself")


def _local(host: str) -> bool:
    return is_loopback(host) or host in {"0.0.0.0", "::"}
