"""Other gateways to measure beside ours: how each is installed and how it is started.

Every Python peer lives in a virtual environment of its own under one directory, so that their
pins cannot meet ours.  A peer that is not installed is skipped by the runner, never an error.

``python -m benchmarks.peers DIR [NAME...]`` installs them (about 2 GB for all).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KEY = "sk-bench-0123456789abcdef"
SECOND_KEY = "sk-bench-guest-0000000000000000"
"""What the load sends as its bearer token; LiteLLM is given it as its master key."""

NGINX_CONF = """\
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.err;
events {{ worker_connections 32768; }}
http {{
  access_log off; keepalive_requests 100000000;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  upstream mock {{ server {upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""

LITELLM_CONF = """\
model_list:
  - model_name: echo
    litellm_params: {{model: openai/echo, api_base: "http://{upstream}/v1", api_key: sk-upstream}}
"""


@dataclass(frozen=True, slots=True)
class Slot:
    """What a peer needs to know to start: its ports, its upstream and a directory of its own."""

    port: int
    extra_port: int
    upstream: str
    dir: Path


@dataclass(frozen=True, slots=True)
class Peer:
    """One gateway: pip requirements, the program that proves it is there, its command line.

    ``argv`` and the values of ``files`` are formatted with the fields of ``Slot`` and ``bin``.
    ``bare`` is installed without dependencies, ``needs`` with them.
    """

    name: str
    program: str
    argv: Sequence[str]
    bare: Sequence[str] = ()
    needs: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("nginx", "nginx", ["{bin}", "-c", "{dir}/nginx.conf"],
             files={"nginx.conf": NGINX_CONF}),
        Peer(
            "vllm-router",
            "vllm-router",
            ["{bin}", "--worker-urls", "http://{upstream}", "--policy", "round_robin",
             "--host", "127.0.0.1", "--port", "{port}", "--prometheus-port", "{extra_port}",
             "--log-level", "error"],
            bare=["vllm-router"],
            needs=["setproctitle", "aiohttp", "orjson", "uvicorn", "fastapi", "requests"],
        ),
        Peer(
            "sglang-router",
            "python",
            ["{bin}", "-m", "sglang_router.launch_router", "--worker-urls", "http://{upstream}",
             "--policy", "round_robin", "--host", "127.0.0.1", "--port", "{port}",
             "--prometheus-port", "{extra_port}", "--log-level", "error"],
            bare=["sglang-router"],
            needs=["setproctitle", "aiohttp", "orjson", "uvicorn", "fastapi", "requests"],
        ),
        Peer(
            "smg",
            "smg",
            ["{bin}", "launch", "--worker-urls", "http://{upstream}", "--policy", "round_robin",
             "--host", "127.0.0.1", "--port", "{port}", "--prometheus-port", "{extra_port}",
             "--log-level", "error"],
            bare=["smg"],
            needs=["setproctitle", "aiohttp", "orjson", "grpcio", "grpcio-health-checking",
                   "pyyaml"],
        ),
        Peer(
            "litellm",
            "litellm",
            ["{bin}", "--config", "{dir}/litellm.yaml", "--host", "127.0.0.1", "--port", "{port}",
             "--num_workers", "1"],
            needs=["litellm[proxy]", "uvloop", "orjson"],
            files={"litellm.yaml": LITELLM_CONF},
            env={
                "LITELLM_LOG": "ERROR",
                "LITELLM_MASTER_KEY": KEY,
                "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
                "PYTHONWARNINGS": "ignore",
            },
        ),
    )
}  # fmt: skip


def program(peer: Peer, root: Path | None) -> Path | None:
    """Find the peer's program, or answer ``None`` when it is not installed."""
    if not (peer.bare or peer.needs):
        found = shutil.which(peer.program) or shutil.which(peer.program, path="/usr/sbin:/sbin")
        return Path(found) if found else None
    if root is None:
        return None
    path = root / peer.name / "bin" / peer.program
    done = root / peer.name / ".installed"
    return path if path.exists() and done.exists() else None


def version(peer: Peer, root: Path | None) -> str:
    """Say which version is installed; empty when the peer does not tell."""
    found = program(peer, root)
    if found is None:
        return ""
    if peer.name == "nginx":
        out = subprocess.run([found, "-v"], capture_output=True, text=True, timeout=10, check=False)
        return out.stderr.strip().rpartition("/")[2].split()[0]
    name = (peer.bare or [peer.name])[0]
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    python = found.parent / "python"
    out = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    return out.stdout.strip()


def command(peer: Peer, binary: Path, slot: Slot) -> list[str]:
    """Write the peer's files and answer its command line."""
    words = {
        "bin": str(binary),
        "port": slot.port,
        "extra_port": slot.extra_port,
        "upstream": slot.upstream,
        "dir": str(slot.dir),
    }
    for name, text in peer.files.items():
        (slot.dir / name).write_text(text.format(**words))
    return [word.format(**words) for word in peer.argv]


def install(peer: Peer, root: Path) -> None:
    """Make the peer's virtual environment; done already = nothing to do."""
    home = root / peer.name
    if program(peer, root) is not None:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    pip = [
        str(home / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
    ]
    if peer.bare:
        subprocess.run([*pip, "--no-deps", *peer.bare], check=True)
    subprocess.run([*pip, *peer.needs], check=True)
    (home / ".installed").write_text("\n".join([*peer.bare, *peer.needs]) + "\n")


def install_system() -> None:
    """Install nginx and wrk from Debian when this user may; otherwise say what is missing."""
    packages = {"nginx": "nginx-light", "wrk": "wrk"}
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [pack for name, pack in packages.items() if not shutil.which(name, path=path)]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(f"bench-peers: install these yourself: {' '.join(missing)}", file=sys.stderr)
        return
    subprocess.run(["apt-get", "install", "-y", "-q", *missing], check=False)


def main() -> int:
    """Install the peers; one that cannot be installed is reported and does not stop the rest."""
    parser = argparse.ArgumentParser(prog="scripts/bench-peers", description=__doc__)
    parser.add_argument("dir", type=Path, help="where the virtual environments go")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}")
    options = parser.parse_args()
    unknown = set(options.names) - set(PEERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    root = options.dir.resolve()
    root.mkdir(parents=True, exist_ok=True)
    install_system()
    failed = 0
    for name in options.names or PEERS:
        peer = PEERS[name]
        if not (peer.bare or peer.needs):
            continue
        try:
            install(peer, root)
        except subprocess.CalledProcessError as error:
            failed += 1
            print(f"bench-peers: {name} could not be installed: {error}", file=sys.stderr)
        else:
            print(f"bench-peers: {name} {version(peer, root)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
