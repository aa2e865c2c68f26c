"""What the settings ask of the HTTP edge before there is a call: keys, hosts and origins."""

from __future__ import annotations

from tpo_mp.config.sections import AuthSection, ServerSection
from tpo_mp.http.keyring import Keyring
from tpo_mp.http.policy import Policy
from tpo_mp.types import Principal


def keyring_of(auth: AuthSection) -> Keyring | None:
    """Return the keys a caller may show; ``None`` when nobody is asked for one."""
    if not auth.enabled:
        return None
    keys = (
        (bytes.fromhex(key.hash), Principal(key.tenant or key.id, key.id, key.tier, key.admin))
        for key in auth.keys
    )
    return Keyring(keys, auth.pepper.reveal() if auth.pepper is not None else "")


def policy_of(server: ServerSection) -> Policy | None:
    """Return the edge's policy; ``None`` when nothing is restricted, so that heads skip it."""
    cors = server.cors
    packs = server.compression_min_bytes or server.compress_streams
    if not (cors.origins or server.trusted_hosts or server.trusted_proxies or packs):
        return None
    return Policy(
        origins=cors.origins,
        credentials=cors.credentials,
        max_age_s=cors.max_age_s,
        hosts=server.trusted_hosts,
        proxies=server.trusted_proxies,
        pack_from=server.compression_min_bytes,
        pack_streams=server.compress_streams,
    )
