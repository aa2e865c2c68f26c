"""Data sets: answers by prompt; what is no row is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpo_mp.errors import ConfigError
from tpo_mp.simulator import dataset


def test_a_prompt_finds_its_answer(tmp_path: Path) -> None:
    """Blanks around it do not matter; the first row of a prompt counts."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt":"a ","answer":"1","more":0}\n\n{"prompt":"a","answer":"2"}\n')
    found = dataset.read(path)
    assert found[dataset.hash_of(" a\n")] == "1"
    assert dataset.hash_of("b") not in found


@pytest.mark.parametrize(("text", "said"), [("", "no prompt"), ('{"prompt":"a"}', "line 1"),
                                            ("x", "line 1")])  # fmt: skip
def test_what_is_no_data_set_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With path and reason."""
    path = tmp_path / "d.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        dataset.read(path)
    assert [where for where, _ in dataset.problems(str(tmp_path / "none"))] == ["dataset"]
    assert not list(dataset.problems(""))
