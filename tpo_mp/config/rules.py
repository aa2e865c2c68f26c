"""Rules between settings that no single bound can say.

Invariants: each rule looks at checked structs only and words its own remedy.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from tpo_mp.ports import BackendConfig

from . import api_keys, certificate
from .problems import Problems, suggestion
from .sections import (
    AuthSection,
    DistributedSection,
    ServerSection,
    StoreSection,
    SupervisorSection,
)
from .tree import RouteRule
from .values import check_url, is_loopback

KEY_CHARACTERS: Final = 16
SEALING_CHARACTERS: Final = 32
_ORIGIN: Final = re.compile(r"\*|null|[a-z*][a-z0-9+.*-]*://[^/?#@\s]+")
_ANYWHERE: Final = re.compile(r"\*|null|[^:]+://\*+(?::.*)?")
_NO_EMBEDDINGS: Final = frozenset({"anthropic", "echo"})
_HOST: Final = re.compile(r"[A-Za-z0-9._*-]+|\[[0-9A-Fa-f:.*]+\]")
_REDIS: Final = re.compile(
    r"rediss?://(?:[^@/?#\s]*@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/[0-9]{0,4})?(?:\?ssl_ca_certs=(?P<ca>/[^?#&\s]+))?"
    r"|unix://(?:[^@/?#\s]*@)?/[^?#\s]+(?:\?db=[0-9]{1,4})?"
)


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


def keys(auth: AuthSection, problems: Problems) -> None:
    """Keys have names and values of their own, long enough not to be guessed."""
    if auth.enabled and not auth.keys and not auth.create_admin_key:
        problems.warn("auth.keys: empty, so every call is refused; `tpo-mp keys new` makes one")
    elif auth.keys and not auth.enabled:
        problems.warn("auth.enabled is false: the keys are not asked for")
    names: set[str] = set()
    values: set[str] = set()
    for index, key in enumerate(auth.keys):
        path = f"auth.keys[{index}]"
        value = key.hash if key.secret is None else key.secret.reveal()
        if (key.secret is None) is (key.hash == ""):
            problems.add(path, "needs a secret or its hash, and not both")
        elif key.secret is not None and key.secret.from_client:
            problems.add(f"{path}.secret", "a key of ours cannot be the caller's own")
        elif len(value) < KEY_CHARACTERS:
            problems.add(f"{path}.secret", f"shorter than {KEY_CHARACTERS} characters")
        elif key.secret is not None and api_keys.is_damaged(value):
            problems.add(f"{path}.secret", "damaged: its last characters do not fit the others")
        elif value in values:
            problems.add(f"{path}.{'hash' if key.hash else 'secret'}", "another key has this value")
        if key.id in names:
            problems.add_value(f"{path}.id", key.id, "another key has this name")
        names.add(key.id)
        values.add(value)


def admin_key(server: ServerSection, auth: AuthSection, problems: Problems) -> None:
    """What a start made must be found by the next one."""
    if auth.create_admin_key and not auth.enabled:
        problems.warn("auth.create_admin_key: does nothing while auth.enabled is false")
    elif auth.create_admin_key and not server.port and not server.state_dir:
        problems.add(
            "auth.create_admin_key", "needs server.state_dir, or a server.port that is not 0"
        )


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


def edge(server: ServerSection, problems: Problems) -> None:
    """Origins, hosts and proxies are ones that can match, and a certificate loads."""
    for index, origin in enumerate(server.cors.origins):
        path = f"server.cors.origins[{index}]"
        if not _ORIGIN.fullmatch(origin):
            said = "an origin is scheme://host or scheme://host:port, without a path"
            problems.add_value(path, origin, said)
        elif server.cors.credentials and _ANYWHERE.fullmatch(origin):
            problems.add_value(path, origin, "with credentials, the origins must be named")
    for index, host in enumerate(server.trusted_hosts):
        if not _HOST.fullmatch(host):
            path = f"server.trusted_hosts[{index}]"
            problems.add_value(path, host, "a host name without a port is expected")
    for index, network in enumerate(server.trusted_proxies):
        try:
            ip_network(network, strict=False)
        except ValueError:
            path = f"server.trusted_proxies[{index}]"
            problems.add_value(path, network, "neither an address nor a CIDR block")
    found = certificate.problem(server.tls)
    if found is not None:
        problems.add(f"server.tls.{found[0]}", found[1])


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


def redis(distributed: DistributedSection, problems: Problems) -> None:
    """What names the Redis is a URL for one."""
    secret = distributed.redis_url
    if secret is None:
        return
    path, url = "distributed.redis_url", distributed.redis
    if secret.from_client:
        problems.add(path, "callers have no Redis of ours")
    elif not url:
        problems.warn(f"{path}: *** stands for the URL where it is hidden; Redis is not used")
    else:
        found = _REDIS.fullmatch(url)
        if found is None or not 0 < int(found["port"] or 6379) < 65_536:
            expected = "redis://HOST:PORT/DB, rediss:// for TLS, or unix:///PATH is expected"
            problems.add_value(path, url, expected)
        elif found["ca"] is not None:
            try:
                ssl.create_default_context(cafile=unquote(found["ca"]))
            except (ssl.SSLError, OSError) as error:
                said = "no certificates" if isinstance(error, ssl.SSLError) else error.strerror
                problems.add(path, f"ssl_ca_certs {unquote(found['ca'])!r} cannot be used: {said}")


def encryption(store: StoreSection, problems: Problems) -> None:
    """Keys are the operator's own, long enough, and what seals with them is installed."""
    seen = set[str]()
    for index, key in enumerate(store.encryption_keys):
        path = f"store.encryption_keys[{index}]"
        if key.from_client:
            problems.add(path, "a caller's key cannot seal what we keep")
        elif len(key.reveal()) < SEALING_CHARACTERS:
            problems.add(
                path, f"shorter than {SEALING_CHARACTERS} characters: openssl rand -base64 32"
            )
        elif key.reveal() in seen:
            problems.add(path, "stands there twice")
        seen.add("" if key.from_client else key.reveal())
    if store.encryption_keys and find_spec("cryptography") is None:
        problems.add(
            "store.encryption_keys",
            "needs the package cryptography: pip install 'tpo-mp[encryption]'",
        )


def failover(routes: Sequence[RouteRule], stages: Collection[str], problems: Problems) -> None:
    """A second backend is asked by the stage that tries again; without it there is no failover."""
    for index, route in enumerate(routes):
        if route.strategy == "failover" and len(route.backends) > 1 and "retry" not in stages:
            problems.warn(
                f"routes[{index}].strategy: a failover route without the stage 'retry' never asks "
                f"{route.backends[1]!r} when a try of {route.backends[0]!r} fails"
            )


def near(stages: Collection[str], problems: Problems) -> None:
    """Near questions are given the answers that the cache keeps."""
    if "near_dedup" in stages and "cache" not in stages:
        problems.warn("stages.near_dedup: without the stage 'cache' there is no answer to give")


def folders(stages: Mapping[str, Any], auth: AuthSection, problems: Problems) -> None:
    """Folders of documents have names of their own, can be found, and belong to somebody."""
    seen: set[str] = set()
    for index, folder in enumerate(getattr(stages.get("rag"), "folders", ())):
        path = f"stages.rag.folders[{index}]"
        if folder.name in seen:
            problems.add_value(f"{path}.name", folder.name, "another folder has this name")
        seen.add(folder.name)
        place = Path(os.path.expanduser(folder.path))  # noqa: PTH111 - Path's own may raise
        if not place.is_absolute():
            problems.add_value(f"{path}.path", folder.path, "must be absolute, or begin with ~")
        elif not place.is_dir():
            problems.warn(f"{path}.path: {folder.path!r} is no folder yet: nothing is read from it")
        if auth.enabled and not folder.tenant:
            problems.warn(f"{path}.tenant: with [auth] nobody is the tenant '': nobody reads it")


def rerank(
    stages: Mapping[str, Any], backends: Sequence[BackendConfig], problems: Problems
) -> None:
    """Documents are put into order by a backend that is there, has the model, and embeds."""
    wanted = getattr(stages.get("rag"), "rerank", None)
    if wanted is None:
        return
    path = "stages.rag.rerank.backend"
    found = next((one for one in backends if one.name == wanted.backend), None)
    if found is None:
        said = f"no such backend; {suggestion(wanted.backend, [one.name for one in backends])}"
        problems.add_value(path, wanted.backend, said)
    elif found.kind in _NO_EMBEDDINGS or (found.apis and "embeddings" not in found.apis):
        problems.add_value(path, wanted.backend, "this backend has no embeddings")
    elif wanted.model not in found.model_map and not any(
        fnmatchcase(wanted.model, model) for model in found.models
    ):
        said = f"backend {found.name!r} does not serve this model"
        problems.add_value("stages.rag.rerank.model", wanted.model, said)


def collected(
    stages: Mapping[str, Any], backends: Sequence[BackendConfig], problems: Problems
) -> None:
    """Calls are collected for backends that are there."""
    names = [one.name for one in backends]
    for i, name in enumerate(getattr(stages.get("batch"), "backends", ())):
        if name not in names:
            said = f"no such backend; {suggestion(name, names)}"
            problems.add_value(f"stages.batch.backends[{i}]", name, said)


def continuing(
    stages: Mapping[str, Any], backends: Sequence[BackendConfig], problems: Problems
) -> None:
    """Streams are gone on with by backends that are there and generate words."""
    kinds = {one.name: one.kind for one in backends}
    for name in getattr(stages.get("continuation"), "backends", ()):
        path = f"stages.continuation.backends.{name}"
        if name not in kinds:
            problems.add(path, f"no such backend; {suggestion(name, list(kinds))}")
        elif kinds[name] == "echo":
            problems.add(path, "a backend of kind 'echo' repeats a prompt and continues nothing")


def _local(host: str) -> bool:
    return is_loopback(host) or host in {"0.0.0.0", "::"}
