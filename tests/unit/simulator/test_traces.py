"""Public traces: the three forms, what is wrong with a file, and words of the right length."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest

from tpo_mp.dialects import openai_chat
from tpo_mp.errors import ConfigError
from tpo_mp.simulator.distributions import Empirical
from tpo_mp.simulator.engine_prompt import block_names
from tpo_mp.simulator.made_requests import chat_body
from tpo_mp.simulator.tokens import prompt_tokens
from tpo_mp.simulator.traces import MOST_LINE, TraceRow, prompt_of, rows_of

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,110,27
2024-01-01 00:00:00+00:00,7,1
"""
BURST = """Timestamp,Session ID,Model,Request tokens,Response tokens,Total tokens,Log Type
5,a,ChatGPT,472,18,490,Conversation log
45.5,a,GPT-4,87,0,87,API log
118,,"GPT-4, new",417,276,693,Conversation log
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 1030, "output_length": 5, "hash_ids": [4, 7]}
{"timestamp": 4500, "input_length": 600, "output_length": 9, "hash_ids": [46, 50], "more": 1}

{"timestamp": 4500, "input_length": 3, "output_length": 1}
"""


def written(tmp_path: Path, text: str) -> Path:
    """A file with this in it."""
    path = tmp_path / "trace"
    path.write_text(text)
    return path


def test_the_three_forms_are_read(tmp_path: Path) -> None:
    """Instants from the first on; failures are left out; blocks keep their names."""
    azure = rows_of(written(tmp_path, AZURE))
    assert [(r.prompt_tokens, r.answer_tokens) for r in azure] == [(4808, 10), (110, 27), (7, 1)]
    assert azure[1].at_s == pytest.approx(0.052, abs=1e-6)
    burst = rows_of(written(tmp_path, BURST))
    assert burst == [TraceRow(0.0, 472, 18), TraceRow(113.0, 417, 276)]
    mooncake = rows_of(written(tmp_path, MOONCAKE))
    assert mooncake[1] == TraceRow(3.5, 600, 9, (46, 50))
    assert mooncake[2] == TraceRow(3.5, 3, 1)
    assert len(rows_of(written(tmp_path, MOONCAKE), for_s=1.0)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is the head of no trace known"),
        ("a,b\n1,2\n", "line 1: 'a,b' is the head of no trace known: TIMESTAMP,Con"),
        (AZURE.replace("110", "-1"), "line 3: column 'ContextTokens': '-1' is no number of tokens"),
        (AZURE.replace("110", "1.5"), "line 3: column 'ContextTokens': '1.5' is no number of tok"),
        (AZURE.replace("27", ""), "line 3: column 'GeneratedTokens': '' is no number"),
        (AZURE.replace("110,27", "110"), "line 3: column 'GeneratedTokens' is missing"),
        (AZURE.replace("2024-01-01", "today"), "line 4: column 'TIMESTAMP': 'today 00:00:00+00:00"),
        (AZURE.replace("2024", "2022"), "'2022-01-01 00:00:00+00:00' is before the first"),
        (AZURE.replace("2024", "2034"), "or over a year after it"),
        (AZURE.partition("\n")[0], "no request is in it"),
        (BURST.replace("118", "nan"), "line 4: column 'Timestamp': 'nan' is no number"),
        (BURST.replace("276", "99999999"), "from 0 to 10000000"),
        (BURST.replace('"GPT-4, new"', '"' + "x" * 200_000 + '"'), "line 4: field larger"),
        (MOONCAKE.replace("600", '"long"'), "line 2: column 'input_length': 'long' is no number"),
        (MOONCAKE.replace("600", "true"), "line 2: column 'input_length': 'True' is no number"),
        (MOONCAKE.replace("[46, 50]", "[-1]"), "line 2: column 'hash_ids': '[-1]' is no list"),
        (MOONCAKE.replace("[46, 50]", "46"), "line 2: column 'hash_ids': '46' is no list"),
        (MOONCAKE.replace('"output_length": 9, ', ""), "line 2: column 'output_length': 'None'"),
        (MOONCAKE.replace("600,", "600"), "line 2: column 41:"),
        (MOONCAKE + "[]\n", "line 5: is no JSON object"),
        ('{"x": "' + "y" * MOST_LINE, "line 1: over 1048576 characters"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    """The file, the line and the column."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as told:
        rows_of(path)
    assert told.value.message.startswith(str(path))
    assert said in told.value.message


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """By its path."""
    with pytest.raises(ConfigError, match="No such file"):
        rows_of(tmp_path / "nothing")


@pytest.mark.parametrize("tokens", [8, 9, 519, 520, 5000, 70_000])
def test_prompts_count_as_many_tokens_as_the_trace_says(tokens: int) -> None:
    """However long they are."""
    text = prompt_of(TraceRow(0, tokens, 1), 3)
    body = chat_body("openai", "gpt-4o", text)
    request = openai_chat.request_to_canonical(orjson.dumps(body))
    assert prompt_tokens(request) == tokens


def test_prompts_share_what_their_blocks_share() -> None:
    """Equal first blocks, equal beginnings; without blocks nothing is shared."""

    def names(row: TraceRow, number: int) -> list[bytes]:
        body = json.dumps(chat_body("openai", "gpt-4o", prompt_of(row, number))).encode()
        return block_names([openai_chat.request_to_canonical(body)], None, 16, "")

    def shared(one: TraceRow, other: TraceRow) -> int:
        pairs = zip(names(one, 0), names(other, 1), strict=False)
        return sum(a == b for a, b in pairs)

    blocks = TraceRow(0, 1600, 1, (1, 2, 3, 4))
    assert shared(blocks, TraceRow(0, 1600, 1, (1, 2, 9, 4))) == 1024 // 16
    assert shared(blocks, TraceRow(0, 1600, 1, (2, 1, 3, 4))) == 0
    assert shared(TraceRow(0, 1600, 1), TraceRow(0, 1600, 1)) == 0


def test_lengths_are_a_distribution(tmp_path: Path) -> None:
    """Those of prompts or of answers; a file that is no trace is told when it is read."""
    path = str(written(tmp_path, BURST))
    answers = Empirical(file=path, trace="answer_tokens")
    assert (answers.quantile(0.0), answers.quantile(1.0)) == (18, 276)
    assert Empirical(file=path, trace="prompt_tokens").average == (472 + 417) / 2
    (tmp_path / "trace").write_text("1 2 3")
    with pytest.raises(ValueError, match="head of no trace"):
        Empirical(file=path, trace="answer_tokens").quantile(0.5)
    with pytest.raises(ValueError, match="trace says what"):
        Empirical(values=(1.0,), trace="answer_tokens")
