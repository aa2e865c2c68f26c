"""What answers are made of: data set, chain, demanded lengths, context limits, cost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import chat
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def made(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator with a data set, prices and a chain."""
    rows = short_tmp / "rows.jsonl"
    rows.write_text('{"prompt": "capital of France?", "answer": "Paris."}\n')
    config = f"""
[simulator]
strategy = "markov"
text = "alpha beta gamma. beta delta alpha."
dataset = "{rows}"
cost = true
prices = {{ "gpt-4o" = {{ input = 2.5, output = 10 }} }}
"""
    with Gateway(short_tmp / "made", config=config, verb="simulate") as gateway:
        yield gateway


def said(gateway: Gateway, text: str, **more: Any) -> tuple[str, str, dict[str, int]]:
    """Words, why they ended, and their counts."""
    told = gateway.ask(CHAT, chat(text, model="gpt-4o", **more)).json()
    choice = told["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], told["usage"]


def test_prompts_of_the_data_set_have_their_answers_and_others_are_made_up(made: Gateway) -> None:
    """Of the chain's words only."""
    assert said(made, "capital of France?")[0] == "Paris."
    words = said(made, "anything else")[0].replace(".", " ").split()
    assert set(words) <= {"alpha", "beta", "gamma", "delta"}
    assert len(words) > 5


def test_demanded_lengths_are_kept(made: Gateway) -> None:
    """All there may be, or so many at least; a demand over the limit is refused."""
    _, reason, usage = said(made, "go on", max_tokens=900, ignore_eos=True)
    assert (reason, usage["completion_tokens"]) == ("length", 900)
    assert said(made, "capital of France?", min_tokens=50)[2]["completion_tokens"] >= 50
    refused = made.ask(CHAT, chat("x", model="gpt-4o", max_tokens=5, min_tokens=6))
    assert (refused.status, refused.json()["error"]["param"]) == (400, "min_tokens")


def test_an_answer_says_what_it_costs(made: Gateway) -> None:
    """At the configured price; streams do too, a model without a price does not."""
    reply = made.ask(CHAT, chat("cost", model="gpt-4o"))
    usage = reply.json()["usage"]
    cost = (usage["prompt_tokens"] * 2.5 + usage["completion_tokens"] * 10) / 1e6
    assert float(reply.headers["x-sim-cost-usd"]) == pytest.approx(cost, abs=1e-8)
    assert "x-sim-cost-usd" in made.ask(CHAT, chat("c", model="gpt-4o", stream=True)).headers
    assert "x-sim-cost-usd" not in made.ask(CHAT, chat("c", model="gemini-2.0-flash")).headers


def test_a_prompt_over_the_context_is_refused_in_the_dialect(made: Gateway) -> None:
    """With the provider's code; a model with more room takes it."""
    text = "word " * 9000
    refused = made.ask(CHAT, chat(text, model="gpt-4"))
    assert (refused.status, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert made.ask(CHAT, chat(text, model="gpt-4o")).status == 200


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        (CHAT, chat("x", model="gpt-4o") | {"max_tokens": 16_385}, "max_tokens"),
        (CHAT, chat("x", model="o3") | {"max_completion_tokens": 100_001}, "max_tokens"),
        ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "x",
                             "max_tokens": 4097}, "max_tokens"),
        ("/v1/responses", {"model": "gpt-4o", "input": "x", "max_output_tokens": 16_385},
         "max_output_tokens"),
        ("/v1/messages", chat("x", model="claude-haiku-4-5") | {"max_tokens": 64_001},
         "max_tokens"),
        ("/v1beta/models/gemini-2.0-flash:generateContent",
         {"contents": [{"parts": [{"text": "x"}]}],
          "generationConfig": {"maxOutputTokens": 8193}}, "maxOutputTokens"),
    ],
)  # fmt: skip
def test_more_than_the_model_writes_is_refused_by_the_field_s_name(
    made: Gateway, route: str, body: dict[str, Any], field: str
) -> None:
    """In every dialect; as much as it writes is not too much."""
    refused = made.ask(route, body)
    assert (refused.status, field in refused.json()["error"]["message"]) == (400, True)
    text = json.dumps(body)
    most = max(int(number) for number in re.findall(r": (\d+)", text))
    assert made.ask(route, json.loads(text.replace(str(most), str(most - 1)))).status == 200


def test_data_set_of_a_reload_is_in_force_on_every_worker(short_tmp: Path) -> None:
    """Read beside the loop, and adopted all the same; then one that is no data set is refused."""
    told = '[simulator]\ndataset = "{}"\n'
    for name in ("first", "second"):
        (short_tmp / name).write_text(f'{{"prompt": "which?", "answer": "{name}"}}\n')
    file = short_tmp / "sim.toml"
    file.write_text(told.format(short_tmp / "first"))
    with Gateway(short_tmp / "again", config=file, workers=2, verb="simulate") as gateway:
        assert said(gateway, "which?")[0] == "first"
        file.write_text(told.format(short_tmp / "second"))
        assert gateway.tpo("reload").returncode == 0
        # A worker that took its time with the file is told as late, and adopts it then.
        wait_for(lambda: {said(gateway, "which?")[0] for _ in range(8)} == {"second"}, timeout_s=30)
        (short_tmp / "second").write_text("no row")
        refused = gateway.tpo("reload")
        assert refused.returncode != 0
        assert "line 1" in refused.stderr
        assert said(gateway, "which?")[0] == "second"
