"""Model servers that the host starts itself: kept, restarted, stopped whole, never left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.gateway import Gateway
from tests.support.host import metric
from tests.support.raw import ask as get
from tests.support.toml import section
from tests.support.wait import free_port, wait_for
from tpo_mp.supervisor import placement
from tpo_mp.supervisor.pinning import EngineNeed

FAKE = Path(__file__).parents[1] / "support/fake_engine.py"
LLAMA_SERVER = f"""#!{sys.executable}
import runpy, sys
words = sys.argv[1:]
more = ["metrics"] if "--metrics" in words else []
more += ["slots=" + words[words.index("-np") + 1]] if "-np" in words else []
sys.argv = ["{FAKE}", words[words.index("--port") + 1], *more]
runpy.run_path("{FAKE}", run_name="__main__")
"""


def engine(name: str, *words: str, **options: Any) -> str:
    """One ``[[engines]]`` entry of the fake engine."""
    command = [sys.executable, str(FAKE), "{port}", *words]
    lines = ["[[engines]]", f'name = "{name}"', f"command = {json.dumps(command)}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    return "\n".join(lines) + "\n"


def rows(gateway: Gateway) -> Mapping[str, Mapping[str, Any]]:
    """What ``status --json`` says of the engines, by name."""
    return {row["engine"]: row for row in gateway.status()["engines"]}


def until(gateway: Gateway, **states: str) -> Mapping[str, Mapping[str, Any]]:
    """Wait for engines to be in these states; answer their rows."""

    def there() -> Mapping[str, Mapping[str, Any]] | None:
        found = rows(gateway)
        return found if all(found[n]["state"] == s for n, s in states.items()) else None

    return wait_for(there, 30, f"engines in states {states}")


def words_of(gateway: Gateway, name: str) -> str:
    """Why an engine does not serve."""
    return str(rows(gateway)[name]["last_words"] or "")


def tree_of(pid: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether none of them lives."""
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def chat(gateway: Gateway, model: str = "m", session: str = "", **more: Any) -> Any:
    """Ask once; answer the reply."""
    body = {"model": model, "messages": [{"role": "user", "content": os.urandom(4).hex()}]}
    headers = {"x-session-id": session} if session else None
    return gateway.ask("/v1/chat/completions", body | more, headers)


def said(reply: Any) -> str:
    """The text of a whole chat."""
    assert reply.status == 200, reply.body
    text: str = json.loads(reply.body)["choices"][0]["message"]["content"]
    return text


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start gateways; stop what a test left running."""
    running: list[Gateway] = []

    def begin(config: str, name: str = "host", **options: Any) -> Gateway:
        gateway = Gateway(tmp_path / name, config=config, ready_s=90, **options)
        gateway.start()
        running.append(gateway)
        return gateway

    yield begin
    for gateway in running:
        gateway.close()


def test_an_engine_serves_is_restarted_and_ends_with_its_group(
    start: Callable[..., Gateway],
) -> None:
    """The whole life: started, asked, killed, started again while others serve, stopped whole."""
    routed = '[[routes]]\nbackends = ["one", "two"]\nstrategy = "failover"\n'
    stray = "child=plain,bare-away,loud"
    config = engine("one", stray, model="m") + engine("two", model="m") + routed
    gateway = start(config, workers=2)
    found = until(gateway, one="ready", two="ready")
    first, second = found["one"]["pid"], found["two"]["pid"]
    assert said(chat(gateway)) == f"pid {first}"
    streamed = chat(gateway, stream=True)
    assert f"pid {first}".encode() in streamed.body
    assert b"[DONE]" in streamed.body
    family = tree_of(first)
    assert len(family) == 4

    os.kill(first, signal.SIGKILL)
    assert said(chat(gateway)) in {f"pid {second}", f"pid {rows(gateway)['one']['pid']}"}
    wait_for(lambda: gone(family), 10, "the killed engine's children to end")
    wait_for(lambda: rows(gateway)["one"]["pid"] not in (None, first), 20, "another process")
    again = until(gateway, one="ready")["one"]
    assert again["restarts"] == 1
    wait_for(lambda: said(chat(gateway)) == f"pid {again['pid']}", 20, "traffic to come back")

    family = tree_of(again["pid"]) + tree_of(second)
    gateway.stop()
    wait_for(lambda: gone(family), 10, "those killed last to end")
    assert not list(gateway.state_dir.glob("engine-*.run"))
    assert "fake engine is listening" in (gateway.state_dir / "engine-one.log").read_text()


def test_an_engine_never_outlives_its_supervisor(start: Callable[..., Gateway]) -> None:
    """The supervisor is killed: the keeper ends it; both are killed: the next start does."""
    config = engine("one", "child", "stubborn", model="m", stop_grace_s=0.5)
    gateway = start(config)
    found = until(gateway, one="ready")["one"]
    family = tree_of(found["pid"])
    gateway.send_signal(signal.SIGKILL)
    wait_for(lambda: gone(family), 10, "the engine to end after its supervisor")
    gateway.close()

    gateway = start(config)
    found = until(gateway, one="ready")["one"]
    family = tree_of(found["pid"])
    keeper = family[0].parent()
    assert keeper is not None
    record = json.loads((gateway.state_dir / "engine-one.run").read_text())
    assert record["pid"] == found["pid"]
    # What is left is the child: the kernel ends the engine itself with its keeper.
    os.kill(gateway.pid, signal.SIGSTOP)
    keeper.kill()
    gateway.send_signal(signal.SIGKILL)
    gateway.close()
    assert not gone(family[1:])
    gateway = start(config)
    assert gone(family)
    gateway.says("old_engine_killed")
    until(gateway, one="ready")
    gateway.stop()


def test_without_the_paths_of_linux_the_next_start_ends_all_of_it(
    start: Callable[..., Gateway],
) -> None:
    """Keeper and supervisor are killed: nobody is left to end the engine, whose record is.

    Of its children one has no mark, and one left its group.
    """
    config, env = engine("one", "child=bare,away", model="m"), {"TPO_PORTABLE": "1"}
    gateway = start(config, env=env)
    family = tree_of(until(gateway, one="ready")["one"]["pid"])
    keeper = family[0].parent()
    assert keeper is not None
    os.kill(gateway.pid, signal.SIGSTOP)
    keeper.kill()
    wait_for(lambda: gone([keeper]), 10, "the keeper to end")
    gateway.send_signal(signal.SIGKILL)
    gateway.close()
    assert len(family) == 3
    assert not any(gone([process]) for process in family)
    gateway = start(config, env=env)
    assert gone(family)
    family = tree_of(until(gateway, one="ready")["one"]["pid"])
    assert len(family) == 3
    gateway.stop()
    assert gone(family), family


def test_what_is_wrong_with_an_engine_is_one_line_and_the_rest_serves(
    start: Callable[..., Gateway],
) -> None:
    """Port taken, no such program, one that ends at once, one over its memory: others serve."""
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        config = "".join((
            engine("well", "loud=200", model="m", log_bytes=4096),
            engine("taken", model="x", port=port),
            '[[engines]]\nname = "absent"\ncommand = ["/no/such/program"]\n',
            engine("dying", "die=0.2", model="x", health_path="/nothing-yet", restart="never"),
            engine("greedy", "hog=300", model="x", memory_limit_bytes=100 << 20),
        ))  # fmt: skip
        gateway = start(config)
        until(gateway, well="ready", taken="backing off", absent="backing off", dying="failed")
        words = {
            "taken": rf"port {port} is taken",
            "absent": "cannot run /no/such/program: No such file",
            "dying": "exit code 7: fake engine is listening",
            "greedy": r"held \d+ MiB of memory, over its limit of 100 MiB",
        }
        for name, expected in words.items():
            line = wait_for(partial(words_of, gateway, name), 20, f"words of {name}")
            assert re.search(expected, line), line
            # Status knows it before the log has its line.
            gateway.says(rf"engine={name}.*{expected}")
        assert said(chat(gateway)) == f"pid {rows(gateway)['well']['pid']}"
        log = gateway.state_dir / "engine-well.log"
        logs = [log, log.with_name(f"{log.name}.1")]
        assert sorted(gateway.state_dir.glob("engine-well.log*")) == logs
        assert all(0 < path.stat().st_size <= 4096 for path in logs)
        assert "ready after" in log.read_text()
        ready = json.loads(gateway.ask("/ready").body)
        assert ready["ready"]
        degraded = gateway.status()["degraded"]
        assert set(degraded) >= {f"engine {name}" for name in ("taken", "absent", "dying")}
        gateway.stop()


def test_engines_that_hang_and_what_engines_see(start: Callable[..., Gateway]) -> None:
    """Without the paths of Linux: silent ones are ended, and no key of the gateway is theirs."""
    config = "".join((
        engine("well", "child", model="m"),
        '[engines.env]\nMY_SETTING = "told"\n',
        engine("mute", "mute", model="x", hung_after_s=0.5, health_interval_s=0.1,
               restart="never", warm_up=False),
        engine("slow", "load=600", model="x", start_timeout_s=1, restart="never"),
    ))  # fmt: skip
    env = {"TPO_PORTABLE": "1", "OPENAI_API_KEY": "sk-of-the-gateway", "TPO_ADMIN_KEY": "a" * 40}
    gateway = start(config, env=env)
    found = until(gateway, well="ready", mute="failed", slow="failed")
    assert re.search(r"no answer for \d+ s", found["mute"]["last_words"])
    assert "not ready after 1 s" in found["slow"]["last_words"]
    family = tree_of(found["well"]["pid"])
    for process in family:
        seen = process.environ()
        assert seen["MY_SETTING"] == "told"
        assert not {"OPENAI_API_KEY", "TPO_ADMIN_KEY"} & seen.keys()
    assert said(chat(gateway)) == f"pid {found['well']['pid']}"
    gateway.send_signal(signal.SIGKILL)
    wait_for(lambda: gone(family), 10, "the engine to end after its supervisor")


def test_a_reload_touches_only_what_changed(start: Callable[..., Gateway]) -> None:
    """One stays, one changes, one goes, one comes; ports nobody chose stay as they are."""
    kept, gone_soon = engine("kept", model="m"), engine("leaving", model="n")
    gateway = start(kept + gone_soon + engine("changed", model="x"))
    before = until(gateway, kept="ready", leaving="ready", changed="ready")
    assert gateway.config_path is not None
    text = kept + engine("changed", "load=0.2", model="x") + engine("coming", model="z")
    gateway.config_path.write_text(text)
    assert gateway.tpo("reload").returncode == 0
    wait_for(lambda: "leaving" not in rows(gateway), 20, "the engine that is not wanted to go")
    wait_for(
        lambda: rows(gateway)["changed"]["pid"] not in (None, before["changed"]["pid"]),
        20, "the changed engine to be started anew",
    )  # fmt: skip
    after = until(gateway, kept="ready", changed="ready", coming="ready")
    for key in ("pid", "port", "restarts"):
        assert after["kept"][key] == before["kept"][key]
    assert after["changed"]["port"] == before["changed"]["port"]
    assert said(chat(gateway, "z")) == f"pid {after['coming']['pid']}"
    assert chat(gateway, "n").status == 404
    gateway.stop()


def test_engines_and_workers_are_on_cores_of_their_own(start: Callable[..., Gateway]) -> None:
    """What status says is what the kernel says, of the keeper, the engine and its children.

    Where there are too few cores, or none can be chosen, nobody is bound and that is no error.
    """
    plan = placement.deal(1, [EngineNeed("one", 1)])
    gateway = start(engine("one", "child", model="m", cores=1), workers=1)
    found = until(gateway, one="ready")["one"]
    slot = gateway.status()["slots"][0]
    family = tree_of(found["pid"])
    keeper = family[0].parent()
    assert keeper is not None
    assert len(family) == 2
    if plan.pinned:
        given = [sorted(process.cpu_affinity()) for process in (keeper, *family)]
        assert given == [found["cpus"]] * 3
        assert psutil.Process(slot["pid"]).cpu_affinity() == [slot["cpu"]]
        assert slot["cpu"] not in found["cpus"]
        assert tuple(found["cpus"]) == plan.engines["one"]
        assert gateway.config_path is not None
        for text in ("", engine("two", model="m", cores=1)):
            gateway.config_path.write_text(text or "[server]\n")
            assert gateway.tpo("reload").returncode == 0
            wait_for(lambda: "one" not in rows(gateway), 20, "the engine to go")
        late = until(gateway, two="ready")["two"]
        assert len(late["cpus"]) >= 1
        assert slot["cpu"] not in late["cpus"]
    else:
        assert (found["cpus"], slot["cpu"]) == (None, None)
        gateway.says("engine_gets_fewer_cores engine=one")
    gateway.stop()


def test_an_engine_is_on_the_node_of_its_gpu(start: Callable[..., Gateway], tmp_path: Path) -> None:
    """A machine is shown whose first GPU hangs on the first of two nodes, one of our cores each.

    The worker is on the other one then; engines without a GPU would have that.
    """
    if not placement.deal(1, [EngineNeed("one", 1)]).pinned:
        pytest.skip("nobody is bound here")
    first, *others = (core.cpus for core in placement.cores())
    for node, cpus in enumerate([first, [cpu for core in others for cpu in core]]):
        for cpu in cpus:
            (tmp_path / f"root/sys/devices/system/cpu/cpu{cpu}/node{node}").mkdir(parents=True)
    bus = "0000:3b:00.0"
    for path, text in ((f"proc/driver/nvidia/gpus/{bus}/information", "Model: A\n"),
                       (f"sys/bus/pci/devices/{bus}/numa_node", "0\n")):  # fmt: skip
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
    env = {"TPO_TEST": "1", "TPO_SYSTEM_ROOT": str(tmp_path / "root")}
    with_gpu = engine("one", model="m", cores=1, gpus=[0])
    gateway = start(with_gpu, workers=1, env=env)
    found = until(gateway, one="ready")["one"]
    assert set(found["cpus"]) <= set(first)
    seen = psutil.Process(found["pid"]).environ()
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_DEVICE_ORDER"]) == ("0", "PCI_BUS_ID")


def test_the_memory_of_its_control_group_is_an_engines_limit_too(
    start: Callable[..., Gateway], tmp_path: Path
) -> None:
    """Ended before the kernel chooses somebody; what the kernel killed is said to be."""
    group = tmp_path / "root/sys/fs/cgroup"
    for path, text in ((group / "memory.max", 64 << 20), (group / "memory.current", 60 << 20),
                       (group / "memory.stat", "inactive_file 9000000\nactive_file 1"),
                       (group / "memory.events", "oom 0\noom_kill 0"),
                       (tmp_path / "root/proc/self/cgroup", "0::/")):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    env = {"TPO_TEST": "1", "TPO_SYSTEM_ROOT": str(tmp_path / "root")}
    config = "[supervisor]\nbackoff_min_s = 0.5\n" + engine("one", "hog=40", model="m")
    gateway = start(config, workers=1, env=env)
    first = until(gateway, one="ready")["one"]["pid"]
    (group / "memory.events").write_text("oom 1\noom_kill 1\n")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: "killed for memory" in words_of(gateway, "one"), 20, "what the kernel did")
    wait_for(lambda: rows(gateway)["one"]["pid"] not in (None, first), 20, "another process")
    until(gateway, one="ready")
    (group / "memory.current").write_text(f"{(64 << 20) + 9_000_000}\n")
    wait_for(lambda: "its control group has 0 of 64 MiB left" in words_of(gateway, "one"), 20,
             "its end")  # fmt: skip


PYTHON_SERVER = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert words["--interrupt_requests"] == "false", words
now, most, another = [], [0], threading.Event()

class Server(BaseHTTPRequestHandler):
    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer(200 if self.path == "/v1/models" else 404, {"object": "list", "data": []})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        now.append(0)
        most[0] = max(most[0], len(now))
        if len(now) > 1:
            another.set()
        another.wait(0.2)  # until a second one is here, if one may come
        now.pop()
        said = {"role": "assistant", "content": f"{most[0]} at once, stream {body.get('stream')}"}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
        self.answer(200, whole | {"choices": [choice]})

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(words["--port"])), Server).serve_forever()
"""


def test_the_server_of_llama_cpp_python_gets_one_call_at_a_time(
    start: Callable[..., Gateway], tmp_path: Path
) -> None:
    """Where ``llama-server`` is not to be found: it interrupts nobody, and has no health page."""
    package = tmp_path / "site/llama_cpp/server"
    package.mkdir(parents=True)
    for file, text in (("../__init__.py", ""), ("__init__.py", ""), ("__main__.py", PYTHON_SERVER)):
        (package / file).write_text(text)
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"x" * 100)
    interrupting = {"args": ["--interrupt_requests", "true"]}
    config = "".join(
        section("[[engines]]", name=name, kind="llama_cpp", model=str(model), models=[name], **more)
        for name, more in (("one", {}), ("two", interrupting))
    )
    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": path, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    gateway = start(config, workers=2, env=env)
    until(gateway, one="ready")
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _n: said(chat(gateway, "one")), range(4)))
    assert set(texts) == {"1 at once, stream None"}
    assert "--interrupt_requests must be false" in words_of(gateway, "two")


def test_metrics_and_ready_tell_how_engines_are(start: Callable[..., Gateway]) -> None:
    """State and restarts of each, whether an engine dies or control does; gone with a reload."""
    broken = '[[engines]]\nname = "broken"\ncommand = ["/no/such/program"]\n'
    gateway = start(engine("one", model="m") + broken, workers=2)

    def tells(**told: tuple[int, int]) -> bool:
        page = gateway.metrics()
        names = "tpo_engine_state", "tpo_engine_restarts_total"
        return all(
            tuple(metric(page, series, engine=name) for series in names) == numbers
            for name, numbers in told.items()
        )

    def lacking() -> list[set[str]]:
        pages = [get(url, "/ready").json() for url in (gateway.url, gateway.ops)]
        assert all(page["ready"] for page in pages)
        return [{w for w in page["degraded"] if w.startswith("engine-")} for page in pages]

    first = until(gateway, one="ready", broken="backing off")["one"]["pid"]
    wait_for(lambda: tells(one=(3, 0)), 10, "the states")
    wait_for(lambda: lacking() == [{"engine-broken"}] * 2, 10, "the engine that is broken")

    os.kill(first, signal.SIGKILL)
    wait_for(lambda: rows(gateway)["one"]["pid"] not in (None, first), 20, "another process")
    until(gateway, one="ready")
    wait_for(lambda: tells(one=(3, 1)), 10, "the restart to be counted")

    control = gateway.status()["control"]["pid"]
    os.kill(control, signal.SIGKILL)

    def replaced() -> bool:
        berth = gateway.status()["control"]
        return berth["state"] == "ready" and berth["pid"] != control

    wait_for(replaced, 20, "another control")
    wait_for(lambda: tells(one=(3, 1)), 10, "the same numbers")
    wait_for(lambda: lacking() == [{"engine-broken"}] * 2, 10, "the same engine")

    assert gateway.config_path is not None
    gateway.config_path.write_text(engine("one", model="m"))
    assert gateway.tpo("reload").returncode == 0
    wait_for(lambda: lacking() == [set(), set()], 10, "nothing to be lacking")
    wait_for(lambda: tells(one=(3, 1)), 10, "the same numbers")
    gateway.stop()


NVIDIA_SMI = """#!/bin/sh
echo '0, NVIDIA A100-SXM4-80GB, 81920, 00000000:07:00.0'
echo '1, NVIDIA A100-SXM4-80GB, 81920, 00000000:0F:00.0'
"""


def test_engines_by_their_kind_load_and_gpus(start: Callable[..., Gateway], tmp_path: Path) -> None:
    """llama.cpp's server has no page of metrics unless it is told to; each sees its GPUs only.

    Sessions keep their slots where there is a number of these.
    """
    model = tmp_path / "model/small.gguf"
    model.parent.mkdir()
    model.write_bytes(b"x")
    (model.parent / "config.json").write_text("{}")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("llama-server", LLAMA_SERVER), ("vllm", LLAMA_SERVER),
                       ("nvidia-smi", NVIDIA_SMI)):  # fmt: skip
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "pynvml.py").write_text("raise ImportError('whatever GPUs are here')\n")
    config = "".join(
        section("[[engines]]", name=name, kind=kind, model=str(loaded), models=[served], gpus=seen)
        for name, kind, loaded, served, seen in (
            ("one", "llama_cpp", model, "m", [1]),
            ("two", "vllm", model.parent, "n", [1, 0]),
            ("lost", "llama_cpp", model, "x", [1, 2]),
        )
    )
    config += section("[[engines]]", name="slots", kind="llama_cpp", model=str(model),
                      models=["s"], args=["-np", "2"])  # fmt: skip
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    python = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    gateway = start(config, env={"PATH": path, "PYTHONPATH": python})
    rows_now = until(gateway, one="ready", two="ready", slots="ready", lost="backing off")
    assert "no GPU 2 here; there are: 0, 1" in words_of(gateway, "lost")
    for name, seen in (("one", "1"), ("two", "1,0")):
        process = psutil.Process(rows_now[name]["pid"])
        told = process.environ()
        assert (told["CUDA_VISIBLE_DEVICES"], told["CUDA_DEVICE_ORDER"]) == (seen, "PCI_BUS_ID")
        words = process.cmdline()
        assert ("--tensor-parallel-size" in words) == (name == "two")
    found = rows_now["one"]
    assert said(chat(gateway)) == f"pid {found['pid']}"
    assert said(chat(gateway, "n")) == f"pid {rows_now['two']['pid']}"
    for state, number in (("running", 3), ("waiting", 1)):
        wait_for(
            lambda state=state, number=number: (  # type: ignore[misc]
                gateway.metric("tpo_engine_requests", backend="one", state=state) == number
            ), 20, f"requests {state}",
        )  # fmt: skip
    in_sessions = lambda: {said(chat(gateway, "s", session=f"s{n}")) for n in range(4)}  # noqa: E731
    wait_for(lambda: in_sessions() == {"slot 0", "slot 1"}, 30, "slots for sessions")
    gateway.stop()
