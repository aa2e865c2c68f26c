"""A model server that is quick to start and easy to break, for tests of how engines are kept.

``python fake_engine.py PORT [WORD …]``; words: ``child`` starts a process that ignores SIGTERM
(``child=bare,away`` two: one without an environment, one in a session of its own; ``loud``: one
that writes without end once the engine is dead),
``stubborn`` ignores SIGTERM itself, ``load=S`` answers 503 on ``/health`` for S seconds,
``die=S`` exits 7 after S seconds, ``hog=MIB`` holds so much memory, ``mute`` answers no health
question once it was ready, ``loud=N`` writes N lines, ``bar`` redraws a progress bar, ``metrics``
serves llama.cpp's page, which is 501 otherwise; ``slots=N`` says so many are there, and nothing to
do, and answers which a call was for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STARTED_AT = time.monotonic()
WORDS = {name: value for name, _, value in (word.partition("=") for word in sys.argv[2:])}
HELD: list[bytes] = []
LOUD = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.read(int(sys.argv[1]), 1)
while True:
    os.write(1, b"x\\n" * 5000)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Server(BaseHTTPRequestHandler):
    """Answers health questions and chats; a chat says which process answered."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        """Health, models and, where it is to, metrics."""
        if self.path == "/metrics":
            run, wait = (0, 0) if "slots" in WORDS else (3, 1)
            names = f"llamacpp:requests_processing {run}\nllamacpp:requests_deferred {wait}\n"
            page = names.encode()
            self._send(*((200, page) if "metrics" in WORDS else (501, b"")))
            return
        if self.path == "/props" and "slots" in WORDS:
            self._answer(200, {"total_slots": int(WORDS["slots"])})
            return
        Server.asked += 1
        loading = time.monotonic() - STARTED_AT < float(WORDS.get("load", 0))
        if "mute" in WORDS and Server.asked > 1:
            time.sleep(60)
        self._answer(503 if loading else 200, {"status": "ok"})

    def do_POST(self) -> None:
        """One chat completion, whole or as a stream."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = f"slot {body.get('id_slot')}" if "slots" in WORDS else f"pid {os.getpid()}"
        if body.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            chunk: dict[str, object]
            for delta, finish in (({"role": "assistant", "content": text}, None), ({}, "stop")):
                choice = {"index": 0, "delta": delta, "finish_reason": finish}
                chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
                chunk |= {"choices": [choice]}
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True
            return
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": body.get("model")}
        self._answer(200, whole | {"choices": [choice], "usage": usage})

    def _answer(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until killed."""
    if "stubborn" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "child" in WORDS:
        death, _ = os.pipe()  # its other end is ours alone, and open for as long as we live
        for how in WORDS["child"].split(","):
            subprocess.Popen(
                [sys.executable, "-c", LOUD if "loud" in how else DEAF, str(death)],
                env={} if "bare" in how else None, start_new_session="away" in how,
                pass_fds=[death],
            )  # fmt: skip
    if "hog" in WORDS:
        HELD.append(b"x" * (int(WORDS["hog"]) << 20))
    if "die" in WORDS:
        threading.Timer(float(WORDS["die"]), lambda: os._exit(7)).start()
    for line in range(int(WORDS.get("loud", 0))):
        print(f"line {line} " + "x" * 100, flush=True)
    print("fake engine is listening", flush=True)
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Server).serve_forever()


if __name__ == "__main__":
    main()
