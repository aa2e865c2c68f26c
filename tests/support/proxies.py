"""Debian's reverse proxies in front of a gateway, as an operator would set them up.

They keep connections to the gateway and share them between clients, pass bodies on while they
arrive, and give up soon, so that no test waits for them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Self

from .wait import accepts, free_port, wait_for

NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_header_timeout 2s;
    client_body_timeout 2s;
    keepalive_timeout 200ms;
    lingering_timeout 200ms;
    upstream gateway {{ server 127.0.0.1:{behind}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_read_timeout 8s;
        }}
    }}
}}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 2s
    timeout client 3s
    timeout server 8s
    timeout http-request 2s
    timeout http-keep-alive 200ms
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    default_backend gateway
backend gateway
    server one 127.0.0.1:{behind}
"""


class Proxy:
    """One proxy in front of a port of this machine; a context manager."""

    def __init__(self, kind: str, folder: Path, behind: int) -> None:
        self.folder = folder
        self.port = free_port()
        self._config = {"nginx": NGINX, "haproxy": HAPROXY}[kind].format(
            folder=folder, behind=behind, port=self.port
        )
        file = str(folder / "conf")
        program = find(kind)
        assert program is not None
        self._command = {
            "nginx": [program, "-c", file, "-e", str(folder / "error.log")],
            "haproxy": [program, "-db", "-f", file],
        }[kind]
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "conf").write_text(self._config)
        with (self.folder / "output").open("wb") as out:
            self._child = subprocess.Popen(self._command, stdout=out, stderr=out)
        try:
            wait_for(self._up, 10, "the proxy")
        except AssertionError:
            self.__exit__()
            raise
        return self

    def _up(self) -> bool:
        assert self._child is not None
        assert self._child.poll() is None, (self.folder / "output").read_text()
        return accepts("127.0.0.1", self.port)

    def __exit__(self, *exc: object) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait(10)


def find(kind: str) -> str | None:
    """The program, which Debian keeps out of most users' paths."""
    return shutil.which(kind) or shutil.which(kind, path="/usr/sbin:/usr/local/sbin")
