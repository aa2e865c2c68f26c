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
MODULES = ("tpo_mp.worker.__main__", "tpo_mp.control.__main__")


def test_certificates_are_read_with_the_first_connection() -> None:
    """Once, as many as ever; ``ssl`` is left as it was found."""
    done = subprocess.run(
        [sys.executable, "-c", ASKS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_no_process_imports_aiohttp_before(module: str) -> None:
    """Or it would have read them already."""
    said = f"import sys, {module}; sys.exit('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], timeout=60, check=False)
    assert done.returncode == 0
