"""Loads read off pages of metrics as engines write them."""

from __future__ import annotations

import json

import pytest

from tpo_mp.control.engine_metrics_page import Reading, read_emptied, read_metrics, read_props

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 8.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
http_requests_total{handler="/v1/models"} 3.0
"""
RANKS = """vllm:num_requests_running{engine="0",model_name="a } b"} 1.0
vllm:num_requests_running{engine="1",model_name="a } b"} 2.0
vllm:num_requests_waiting{engine="1",model_name="a } b"} 0.0
vllm:gpu_cache_usage_perc{engine="0"} 0.5
vllm:gpu_cache_usage_perc{engine="1"} 0.75
"""
LLAMA = """# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
llamacpp:requests_deferred 3
llamacpp:n_busy_slots_per_decode 1.5
"""


@pytest.mark.parametrize(
    ("page", "reading"),
    [
        (VLLM, Reading(8.0, 4.0, 0.25)),
        (RANKS, Reading(3.0, 0.0, 0.75)),
        (LLAMA, Reading(2.0, 3.0, None)),
        ("vllm:num_requests_running 1e308\nvllm:num_requests_waiting 2\n", Reading(0.0, 2.0, None)),
        ("", None),
        ("<html>no metrics here</html>", None),
        ("vllm:num_requests_running NaN\nvllm:num_requests_waiting x\n", None),
        ("vllm:num_requests_running{\nvllm:num_requests_waiting 1", Reading(0.0, 1.0, None)),
    ],
)
def test_pages(page: str, reading: Reading | None) -> None:
    """New names and old, several ranks, and pages of something else."""
    assert read_metrics(page) == reading


@pytest.mark.parametrize(
    ("page", "slots"),
    [
        (b'{"default_generation_settings": {"n_ctx": 512}, "total_slots": 4}', 4),
        (b'{"total_slots": -1}', 0),
        (b'{"total_slots": "4"}', 0),
        (b'{"total_slots": 1000000000}', 0),
        (b'{"role": "router"}', 0),
        (b"[4]", 0),
        (b"", 0),
        (b"<html>", 0),
    ],
)
def test_slots(page: bytes, slots: int) -> None:
    """Some number that can be believed, or none."""
    assert read_props(page) == slots


@pytest.mark.parametrize(
    ("held", "emptied"),
    [
        ([None, None, 34, 0], True),
        ([0, 0], True),
        ([34, 34, 0], False),
        ([None, 34], False),
        ([], False),
    ],
)
def test_slots_that_are_emptied(held: list[int | None], emptied: bool) -> None:
    """Those count that had a task and have none."""
    slots = [{"id": 0, "is_processing": True, "id_task": 9, "n_prompt_tokens": 0}]
    slots += [
        {
            "id": n,
            "is_processing": False,
            **({} if tokens is None else {"id_task": n, "n_prompt_tokens": tokens}),
        }
        for n, tokens in enumerate(held, 1)
    ]
    assert read_emptied(json.dumps(slots).encode()) is emptied


@pytest.mark.parametrize(
    "page", [b"", b"{}", b'[{"id_task": "x"}]', b'[{"id_task": 1}]', b"[" * 9999]
)
def test_pages_of_no_slots(page: bytes) -> None:
    """They say nothing."""
    assert read_emptied(page) is False
