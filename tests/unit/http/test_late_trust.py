"""aiohttp imported without its certificates: what it trusts, and what it cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASKS = """
import ssl
usual, read = ssl.create_default_context, []
paths = ssl.SSLContext.set_default_verify_paths
load = ssl.SSLContext.load_default_certs
ssl.SSLContext.load_default_certs = lambda self, *a: (read.append(self), load(self, *a))
from tpo_mp.http.late_trust import LateTrust, import_aiohttp
import_aiohttp()
from aiohttp import connector
trusting, blind = connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED
assert ssl.create_default_context is usual
assert ssl.SSLContext.set_default_verify_paths is paths
assert not read and not trusting.get_ca_certs() and not blind.get_ca_certs()
assert trusting.verify_mode == ssl.CERT_REQUIRED and trusting.check_hostname
assert type(trusting) is LateTrust and blind.verify_mode == ssl.CERT_NONE
for _ in range(2):
    trusting.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x")
assert read == [trusting]
assert usual().get_ca_certs() == trusting.get_ca_certs()
"""
BOOTS = """
import importlib, sys, types
import tpo_mp.shm.lifeline
package, served = sys.argv[1], []

class ControlProcess:
    def __init__(self, *_):
        pass

    async def run(self):
        served.append(self)

async def main(*_):
    served.append(main)

stub = types.ModuleType(package)
stub.main, stub.ControlProcess = main, ControlProcess
sys.modules[package + (".shard" if package.endswith("worker") else ".process")] = stub
tpo_mp.shm.lifeline.attach_to_parent = lambda _: (None, 0)
entry = importlib.import_module(package + ".__main__")
getattr(entry, "_boot", None) and entry._boot() or getattr(entry, "main", int)()
import aiohttp.connector
from tpo_mp.http.late_trust import LateTrust
assert served and type(aiohttp.connector._SSL_CONTEXT_VERIFIED) is LateTrust
"""


def test_certificates_are_read_with_the_first_connection() -> None:
    """Once, as many as ever; ``ssl`` is left as it was found."""
    done = subprocess.run(
        [sys.executable, "-c", ASKS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["tpo_mp.worker", "tpo_mp.control"])
def test_every_process_that_serves_starts_without_them(package: str) -> None:
    """Its entry imports aiohttp this way, and nothing does before."""
    done = subprocess.run(
        [sys.executable, "-c", BOOTS, package],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
