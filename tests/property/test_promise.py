"""A coroutine gets the same from the driver as from a task, whatever it waits for and when."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.pipeline.promise import Promise, run

# Each wait: what for, whether it is known before, whether it fails.
WAITS = st.lists(
    st.tuples(st.sampled_from(["promise", "future", "turn"]), st.booleans(), st.booleans()),
    max_size=6,
)


async def work(waits: list[Any], seen: list[str]) -> str:
    """Wait for each in turn, surviving errors."""
    for i, wait in enumerate(waits):
        try:
            got = await wait if wait is not None else await asyncio.sleep(0, "turn")
        except ValueError as e:
            got = f"error {e}"
        seen.append(f"{i}: {got}")
    return "end"


async def play(plan: list[tuple[str, bool, bool]], driven: bool, cancel_at: int) -> list[str]:
    """Run ``work`` by a task or by the driver, settling its waits one by one."""
    loop = asyncio.get_running_loop()
    waits: list[Any] = []
    later: list[Any] = []
    for kind, known, fails in plan:
        if kind == "turn":
            waits.append(None)
            continue
        wait: Any = Promise() if kind == "promise" else loop.create_future()

        def settle(wait: Any = wait, fails: bool = fails, i: int = len(waits)) -> None:
            if isinstance(wait, Promise):
                wait.reject(ValueError(i)) if fails else wait.resolve(i)
            elif not wait.done():
                wait.set_exception(ValueError(i)) if fails else wait.set_result(i)
                if fails:
                    wait.exception()

        waits.append(wait)
        settle() if known else later.append(settle)
    seen: list[str] = []

    def done(value: Any, error: BaseException | None) -> None:
        seen.append(type(error).__name__ if error is not None else value)

    cancel: Any
    if driven:
        cancel = run(work(waits, seen), done)
    else:
        task = loop.create_task(work(waits, seen))
        task.add_done_callback(
            lambda t: (
                done(None, asyncio.CancelledError()) if t.cancelled() else done(t.result(), None)
            )
        )
        cancel = task.cancel
    for step, settle in enumerate([*later, None]):
        for _ in range(12):
            await asyncio.sleep(0)
        if step == cancel_at and cancel is not None:
            cancel()
            for _ in range(12):
                await asyncio.sleep(0)
        if settle is not None:
            settle()
    for _ in range(12):
        await asyncio.sleep(0)
    return seen


@given(WAITS, st.integers(-1, 6))
def test_driver_and_task_agree(plan: list[tuple[str, bool, bool]], cancel_at: int) -> None:
    """Values, errors, order and cancellation."""
    by_task = asyncio.run(play(plan, False, cancel_at))
    by_driver = asyncio.run(play(plan, True, cancel_at))
    assert by_driver == by_task
    assert by_driver[-1] in ("end", "CancelledError")
