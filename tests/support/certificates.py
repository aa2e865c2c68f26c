"""Certificates for a test: an authority of its own, and what it signs for 127.0.0.1."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Literal

KEYS = {"ec": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "rsa": ("rsa:2048",)}


def available() -> bool:
    """Whether certificates can be made here."""
    return shutil.which("openssl") is not None


class Authority:
    """A folder with ``ca.pem`` and the pairs it signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._run("req", "-x509", "-newkey", *KEYS["ec"], "-nodes", "-days", "30",
                  "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip

    def sign(self, name: str, *, days: int = 10, key: Literal["ec", "rsa"] = "ec") -> Path:
        """Make ``NAME.pem`` and ``NAME.key``; answer the path without ending."""
        (self.folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        self._run("req", "-newkey", *KEYS[key], "-nodes", "-subj", f"/CN={name}",
                  "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                  "-CAcreateserial", "-days", str(days), "-extfile", f"{name}.ext",
                  "-out", f"{name}.pem")  # fmt: skip
        return self.folder / name

    def encrypt(self, name: str) -> Path:
        """Make ``NAME.locked`` of ``NAME.key``, behind a pass phrase."""
        self._run("pkey", "-in", f"{name}.key", "-aes128", "-passout", "pass:secret",
                  "-out", f"{name}.locked")  # fmt: skip
        return self.folder / f"{name}.locked"

    def install(self, name: str, cert_file: Path, key_file: Path) -> None:
        """Put a pair in the place of another, as a renewal does."""
        shutil.copy(self.folder / f"{name}.pem", cert_file)
        shutil.copy(self.folder / f"{name}.key", key_file)

    def client(self) -> ssl.SSLContext:
        """A context of a client that trusts this authority alone."""
        return ssl.create_default_context(cafile=str(self.folder / "ca.pem"))

    def _run(self, *args: str) -> None:
        subprocess.run(
            ["openssl", *args], cwd=self.folder, check=True, capture_output=True, timeout=30
        )


def common_name(peer: ssl.SSLSocket | ssl.SSLObject) -> str:
    """Who the far side said it is."""
    found = peer.getpeercert()
    assert found
    return dict(pair[0] for pair in found["subject"])["commonName"]  # type: ignore[misc,index]
