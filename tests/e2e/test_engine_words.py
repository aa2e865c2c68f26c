"""Completions in the words of engines: llama.cpp's ``/completion`` and vLLM's old ``/generate``.

Two workers before upstreams that say what ``llama-server`` was seen to say, and before the real one
where it is installed.  vLLM took its ``/generate`` out; its shape is that of its last version.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import engines
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, chat
from tests.support.shards import render, session_on
from tests.support.toml import ECHO, NO_CACHE, NO_RETRIES, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "once upon"
WORDS = [" a", " ti", "me"]
COUNTS = {
    "tokens_predicted": 3, "tokens_evaluated": 7, "timings": {"cache_n": 4, "predicted_ms": 1.5}
}  # fmt: skip
OCTETS = "application/octet-stream"


def ended(index: int = 0, **more: Any) -> dict[str, Any]:
    """How llama.cpp ends a choice."""
    end = {"index": index, "content": "", "stop": True, "stop_type": "eos", "stopping_word": ""}
    return end | COUNTS | more


def spoken(*said: dict[str, Any]) -> tuple[bytes, ...]:
    """A stream of llama.cpp's."""
    words = [{"index": 0, "content": word, "tokens": [3], "stop": False} for word in WORDS]
    return tuple(b"data: %b\n\n" % json.dumps(event).encode() for event in (*words, *said))


def lines(end: bytes, *texts: str) -> tuple[bytes, ...]:
    """A stream of ``/generate``."""
    return tuple(json.dumps({"text": [text]}).encode() + end for text in texts)


@dataclass(slots=True)
class Bench:
    """A gateway before an upstream for each API."""

    gateway: Gateway
    llama: Upstream
    vllm: Upstream

    def ask(self, model: str, **more: Any) -> RawReply:
        """One completion."""
        return self.gateway.ask(COMPLETIONS, {"model": model, "prompt": PROMPT} | more)


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """Cache and retries are off: what the upstream says is what is looked at."""
    with ExitStack() as made:
        llama, vllm = made.enter_context(Upstream()), made.enter_context(Upstream())
        config = NO_CACHE + NO_RETRIES + ECHO
        for kind, api, upstream in (("llama_cpp", "completion", llama), ("vllm", "generate", vllm)):
            config += section(
                "[[backends]]", name=kind, kind=kind, apis=[api], base_url=upstream.base_url,
                models=[kind, "mixed"], model_map={kind: "theirs"}, health={"enabled": False},
                metrics_path="",
            )  # fmt: skip
        config += section("[[backends]]", name="claude", kind="anthropic", models=["claude"],
                          base_url=vllm.base_url)  # fmt: skip
        config += section("[[routes]]", models=["mixed"], backends=["llama_cpp", "vllm"],
                          strategy="round_robin")  # fmt: skip
        config += section("[[routes]]", models=["*"], strategy="weighted")
        gateway = made.enter_context(Gateway(short_tmp / "words", config=config, workers=2))
        yield Bench(gateway, llama, vllm)


@pytest.fixture(autouse=True)
def rest(bench: Bench) -> Iterator[None]:
    """Each test begins with well behaved upstreams."""
    with bench.llama.at_rest(), bench.vllm.at_rest():
        yield


def data(reply: RawReply) -> list[dict[str, Any]]:
    """The events of a stream that ended well."""
    assert reply.status == 200, reply.body
    assert reply.events[-1] == b"[DONE]", reply.body
    return [json.loads(event) for event in reply.events[:-1]]


def text(chunks: list[dict[str, Any]]) -> str:
    """What was said."""
    return "".join(c["choices"][0]["text"] for c in chunks if c["choices"])


def test_llama_is_asked_in_its_words(bench: Bench) -> None:
    """At its own path, as a stream though the client wants the whole; and what it knows alone."""
    bench.llama.play(events=spoken(ended()))
    asked = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": "x", "min_p": 0.1,
        "logit_bias": {"5": 2}, "frequency_penalty": 0.25,
    }  # fmt: skip
    reply = bench.ask("llama_cpp", **asked)
    assert reply.status == 200, reply.body
    seen = bench.llama.seen[-1]
    assert seen.path == "/completion"
    expected = {k: v for k, v in asked.items() if k != "max_tokens"} | {
        "model": "theirs", "prompt": PROMPT, "n_predict": 9, "stop": ["x"], "stream": True
    }  # fmt: skip
    assert seen.json() == expected
    whole = reply.json()
    assert whole["object"] == "text_completion"
    assert whole["choices"] == [
        {"text": "".join(WORDS), "index": 0, "logprobs": None, "finish_reason": "stop"}
    ]
    assert whole["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("how", "why"), [("eos", "stop"), ("limit", "length"), ("word", "stop"), ("new", "stop")]
)
def test_why_llama_stopped(bench: Bench, how: str, why: str) -> None:
    """Whole (asked for log probabilities, it is asked for the whole) and streamed."""
    row = {"id": 3, "token": " a", "bytes": [32, 97], "logprob": -0.5, "top_logprobs": []}
    said = ended(content=" a", stop_type=how, completion_probabilities=[row])
    bench.llama.play(reply=said, events=spoken(ended(stop_type=how)))
    whole = bench.ask("llama_cpp", logprobs=0).json()["choices"][0]
    assert bench.llama.seen[-1].json()["stream"] is False
    assert (whole["text"], whole["finish_reason"]) == (" a", why)
    assert whole["logprobs"]["token_logprobs"] == [-0.5]
    chunks = data(bench.ask("llama_cpp", stream=True))
    assert text(chunks) == "".join(WORDS)
    assert chunks[-1]["choices"][0]["finish_reason"] == why
    assert not any("usage" in chunk for chunk in chunks)


def test_several_choices_and_counts_of_llama(bench: Bench) -> None:
    """A stream that tells usage to who asked for it; the prompt counts once."""
    other = {"index": 1, "content": "b", "stop": False}
    bench.llama.play(events=spoken(other, ended(1, stop_type="limit"), ended()))
    chunks = data(bench.ask("llama_cpp", stream=True, n=2, stream_options={"include_usage": True}))
    why = {
        c["choices"][0]["index"]: c["choices"][0]["finish_reason"]
        for c in chunks
        if c["choices"] and c["choices"][0]["finish_reason"]
    }
    assert why == {0: "stop", 1: "length"}
    assert chunks[-1]["usage"]["prompt_tokens"] == 7
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    bench.llama.play(reply=[ended(content="x"), ended(1, content="y")])
    whole = bench.ask("llama_cpp", n=2, logprobs=1).json()
    assert [choice["text"] for choice in whole["choices"]] == ["x", "y"]


@pytest.mark.parametrize("fault", ["cut", "no_done", "error", "noise"])
def test_streams_of_llama_that_break(bench: Bench, fault: str) -> None:
    """The client is told; one that wanted the whole gets an error, too."""
    if fault == "error":
        broken = {"error": {"code": 500, "message": "slot broke", "type": "server_error"}}
        bench.llama.play(events=spoken(broken))
    elif fault == "noise":
        bench.llama.play(events=(*spoken(), b'data: {"content": 5}\n\n', b"\n\n"))
    else:
        bench.llama.play("cut" if fault == "cut" else "no_done", events=spoken(ended()))
    streamed = bench.ask("llama_cpp", stream=True)
    if fault == "noise":
        # It may come with the first words, and then there is no reply yet.
        assert streamed.status == 502 or b"an event that is none" in streamed.body
        return
    assert streamed.status == 200
    told = json.loads(streamed.events[-1])["error"]
    assert b"[DONE]" not in streamed.body
    assert text([json.loads(event) for event in streamed.events[:-1]]).startswith(" a ti")
    whole = bench.ask("llama_cpp")
    assert whole.status == 502, whole.body
    if fault == "error":
        assert told["message"] == whole.json()["error"]["message"] == "slot broke"


def test_a_whole_that_is_none(bench: Bench) -> None:
    """Another shape, or one that does not say that it ended."""
    nothing: list[Any] = [{"content": "x"}, {"choices": []}, [3]]
    for said in nothing:
        bench.llama.play(reply=said)
        reply = bench.ask("llama_cpp", logprobs=1)
        assert (reply.status, reply.json()["error"]["code"]) == (502, "bad_upstream_body")


def test_errors_of_llama_pass(bench: Bench) -> None:
    """In its words, whatever was asked for."""
    said = {"error": {"code": 400, "type": "exceed_context_size_error", "message": "too long"}}
    bench.llama.play("status", status=400, reply=said)
    for more in ({}, {"stream": True}):
        reply = bench.ask("llama_cpp", **more)
        assert (reply.status, reply.json()) == (400, said)


def test_what_cannot_be_said_is_refused_before_anybody_is_asked(bench: Bench) -> None:
    """With the field's name."""
    refused: list[tuple[str, dict[str, Any]]] = [
        ("llama_cpp", {"suffix": "x"}), ("llama_cpp", {"best_of": 3}),
        ("vllm", {"logprobs": 1}), ("vllm", {"logit_bias": {"5": 1}}),
    ]  # fmt: skip
    for model, more in refused:
        reply = bench.ask(model, **more)
        assert (reply.status, reply.json()["error"]["param"]) == (400, *more)
    system = chat("hi", "llama_cpp")
    system["messages"].insert(0, {"role": "system", "content": "be nice"})
    assert bench.gateway.ask(CHAT, system).status == 400
    assert not bench.llama.seen
    assert not bench.vllm.seen


def test_clients_of_other_dialects(bench: Bench) -> None:
    """One message is a prompt, as it is; its answer is theirs, with counts."""
    bench.llama.play(events=spoken(ended()))
    reply = bench.gateway.ask(CHAT, chat("hi", "llama_cpp", max_tokens=4))
    assert bench.llama.seen[-1].json()["prompt"] == "hi"
    assert reply.json()["choices"][0]["message"]["content"] == "".join(WORDS)
    streamed = bench.gateway.ask(CHAT, chat("hi", "llama_cpp", stream=True))
    said = [json.loads(e)["choices"][0]["delta"].get("content") for e in streamed.events[:-1]]
    assert "".join(filter(None, said)) == "".join(WORDS)
    native = bench.gateway.ask("/v1/prompt", {"prompt": "hi", "model": "llama_cpp"}).json()
    assert (native["result"], native["finish_reason"]) == ("".join(WORDS), "stop")
    assert native["usage"]["total_tokens"] == 10


def test_native_clients_that_say_nothing_get_what_suits_the_backend(bench: Bench) -> None:
    """By its kind; whoever speaks OpenAI's dialect is told nothing (above)."""
    message = {
        "id": "m", "type": "message", "role": "assistant", "model": "claude",
        "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    bench.llama.play(events=spoken(ended()))
    for model, upstream, answer, limit, told in (
        ("llama_cpp", bench.llama, None, "n_predict",
         {"n_predict": 256, "temperature": 0.8, "stop": ["</s>", "Human:"]}),
        ("vllm", bench.vllm, {"text": ["hi there"]}, "max_tokens",
         {"max_tokens": 512, "temperature": 0.7, "top_p": 0.95}),
        ("claude", bench.vllm, message, "max_tokens", {"max_tokens": 1024, "temperature": 1.0}),
    ):  # fmt: skip
        if answer is not None:
            bench.vllm.play(reply=answer)
        for said in ({}, {"max_tokens": 9, "temperature": 0}):
            asked = {"prompt": "hi", "model": model, **said}
            reply = bench.gateway.ask("/v1/prompt", asked)
            assert reply.status == 200, reply.body
            got = upstream.seen[-1].json()
            expected = told | ({limit: 9, "temperature": 0} if said else {})
            assert {name: got.get(name) for name in expected} == expected


def test_each_of_a_route_of_several_kinds_is_told_what_suits_it(bench: Bench) -> None:
    """Whichever worker has the call, also where it is a prompt of a batch; what was said stays."""
    bench.llama.play(events=spoken(ended()))
    bench.vllm.play(reply={"text": ["hi there"]})
    suits: dict[str, dict[str, Any]] = {
        "llama_cpp": {"n_predict": 256, "temperature": 0.8, "stop": ["</s>", "Human:"]},
        "vllm": {"max_tokens": 512, "temperature": 0.7, "top_p": 0.95},
    }
    upstreams = {"llama_cpp": bench.llama, "vllm": bench.vllm}
    several = {"prompts": ["one", "two", "three", "four"], "model": "mixed"}
    asked: list[tuple[str, dict[str, Any]]] = [("/api/v1/batch", several)]
    sessions = [session_on(bench.gateway.url, shard) for shard in (0, 1)]
    asked += [("/v1/prompt", {"prompt": "hi", "model": "mixed", "session_id": session})
              for session in sessions for _ in range(4)]  # fmt: skip
    for said in ({}, {"temperature": 0.5, "max_tokens": 9}):
        before = {name: len(upstream.seen) for name, upstream in upstreams.items()}
        for target, body in asked:
            reply = bench.gateway.ask(target, body | said)
            assert reply.status == 200, reply.body
        for name, upstream in upstreams.items():
            expected = dict(suits[name])
            if said:
                expected |= {next(iter(expected)): 9, "temperature": 0.5}
            new = [seen.json() for seen in list(upstream.seen)[before[name] :]]
            assert len(new) >= 2
            for got in new:
                told = {k: v for k, v in got.items() if k not in ("prompt", "stream", "model")}
                assert told == expected


def test_llama_stops_when_the_client_left(bench: Bench) -> None:
    """Also the one that wants the whole: it is asked for a stream."""
    bench.llama.play("hang_body", events=spoken(ended()))
    with RawClient(bench.gateway.url) as client:
        body = {"model": "llama_cpp", "prompt": PROMPT}
        client.send(render(client.host, body, {}, "fast", COMPLETIONS))
        wait_for(lambda: bench.llama.counters.open == 1, 10, "the call")
        before = bench.llama.counters.aborted
    wait_for(lambda: bench.llama.counters.aborted == before + 1, 10, "it to be given up")
    assert bench.llama.seen[-1].json()["stream"] is True


def test_generate_whole(bench: Bench) -> None:
    """Nothing is told that it does not know, the model included; the prompt is not an answer."""
    bench.vllm.play(reply={"text": [PROMPT + " a time", PROMPT + " two"]})
    reply = bench.ask("vllm", max_tokens=9, n=2, stop=["x"], top_k=5, ignore_eos=True)
    assert reply.status == 200, reply.body
    seen = bench.vllm.seen[-1]
    assert seen.path == "/generate"
    assert seen.json() == {
        "prompt": PROMPT, "max_tokens": 9, "n": 2, "stop": ["x"], "top_k": 5, "ignore_eos": True,
        "stream": False,
    }  # fmt: skip
    assert [c["text"] for c in reply.json()["choices"]] == [" a time", " two"]
    assert {c["finish_reason"] for c in reply.json()["choices"]} == {None}  # nobody told
    assert "usage" not in reply.json()


@pytest.mark.parametrize("end", [b"\n", b"\0"], ids=["line", "zero"])
def test_generate_streamed(bench: Bench, end: bytes) -> None:
    """Each line says everything anew; its last may lack its end."""
    events = lines(end, PROMPT, PROMPT + " a", PROMPT + " a time") + lines(
        b"", PROMPT + " a time ago"
    )
    bench.vllm.play(events=events, media_type=OCTETS)
    reply = bench.ask("vllm", stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    chunks = data(reply)
    assert [c["choices"][0]["text"] for c in chunks] == [" a", " time", " ago"]
    streamed = bench.gateway.ask(CHAT, chat(PROMPT, "vllm", stream=True))
    assert streamed.events[-1] == b"[DONE]"


@pytest.mark.parametrize("fault", ["cut", "nothing", "back", "noise", "page"])
def test_generate_that_breaks(bench: Bench, fault: str) -> None:
    """An error, before the first word or after."""
    events = lines(b"\n", PROMPT + " a", PROMPT + " a time")
    if fault == "cut":
        bench.vllm.play("cut", cut_after=1, events=events, media_type=OCTETS)
    elif fault == "page":
        bench.vllm.play("html")
    else:
        broken = {"nothing": (b"\n",), "back": (*events, *lines(b"\n", "other")),
                  "noise": (*events, b"{noise\n")}  # fmt: skip
        bench.vllm.play(events=broken[fault], media_type=OCTETS)
    reply = bench.ask("vllm", stream=True)
    if fault in ("nothing", "page"):
        assert reply.status == 502, reply.body
    if reply.status == 200:
        assert "error" in json.loads(reply.events[-1])
        assert b"[DONE]" not in reply.body
    else:
        assert (reply.status, fault != "cut") == (502, True)


@pytest.mark.parametrize(
    ("apis", "why"),
    [(["completions", "completion"], "only one of them is asked"),
     (["generate"], "'generate' is none of chat, completions, embeddings, responses, completion")],
)  # fmt: skip
def test_apis_that_cannot_be(tmp_path: Path, apis: list[str], why: str) -> None:
    """One line says so, and the exit code."""
    url = "http://127.0.0.1:9/v1"
    config = section("[[backends]]", name="l", kind="llama_cpp", apis=apis, base_url=url)
    (tmp_path / "c.toml").write_text(config)
    command = [sys.executable, "-m", "tpo_mp", "check", "--config", str(tmp_path / "c.toml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done
    assert "backends[0].apis" in done.stderr
    assert why in done.stderr


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_the_real_llama_server(tmp_path: Path) -> None:
    """Its two APIs say the same: words, reasons, counts and log probabilities; and it stops."""
    found = engines.find("llama_cpp")
    if isinstance(found, str):
        pytest.skip(found)
    with engines.serving(found, tmp_path) as url:
        config = NO_CACHE + "".join(
            section("[[backends]]", name=name, kind="llama_cpp", base_url=f"{url}/v1",
                    models=[name], model_map={name: engines.MODEL}, apis=[name])
            for name in ("completions", "completion")
        )  # fmt: skip
        with Gateway(tmp_path / "host", config=config, workers=2) as gateway:
            asked = [
                {"max_tokens": 6}, {"max_tokens": 6, "stream": True}, {"max_tokens": 2, "n": 2},
                {"stop": ["b", "a", "e"], "max_tokens": 40}, {"logprobs": 2, "max_tokens": 3},
                {"prompt": "hello " * 3000},
            ]  # fmt: skip
            for more in asked:
                said = [_summary(gateway, name, more) for name in ("completions", "completion")]
                assert said[0] == said[1], more


def _summary(gateway: Gateway, name: str, more: dict[str, Any]) -> Any:
    body = {"model": name, "prompt": "hello there", "temperature": 0} | more
    if more.get("stream"):
        body |= {"stream_options": {"include_usage": True}}
    reply = gateway.ask(COMPLETIONS, body)
    if reply.status != 200:
        return reply.status, reply.json()
    if more.get("stream"):
        chunks = data(reply)
        whys = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
        return text(chunks), whys[-1], chunks[-1]["usage"]["completion_tokens"]
    whole = reply.json()
    choices = [(c["text"], c["finish_reason"], _rows(c["logprobs"])) for c in whole["choices"]]
    # Of several choices its OpenAI side counts one.
    counted = whole["usage"]["completion_tokens"] if len(choices) == 1 else None
    return choices, whole["usage"]["prompt_tokens"], counted


def _rows(logprobs: dict[str, Any] | None) -> list[float] | None:
    if logprobs is None:
        return None
    rows = logprobs.get("content")  # chat's, even on its completions
    return [row["logprob"] for row in rows] if rows else logprobs["token_logprobs"]
