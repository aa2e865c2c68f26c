"""Workers that spend a budget, to be killed in the middle of it (see ``tests.support.actor``)."""

from __future__ import annotations

import random
from dataclasses import replace

import orjson

from tests.support.actor import hear, play, say
from tests.support.fake_env import FakeWorld, SilentSeries, make_call
from tpo_mp.errors import OverBudget, Shed
from tpo_mp.pipeline.budgets import Periods
from tpo_mp.pipeline.endings import tell_ended
from tpo_mp.shm.quotas import QuotaSegment, SharedQuotas
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.segment import Segment
from tpo_mp.stages.token_budget import FEATURE, Config
from tpo_mp.types import Call, Ending, Terminal

ROWS, QUOTA_ROWS, SEATS = 8, 64, 5


def spend(
    fd: int, locks_fd: int, quotas_fd: int, epochs_fd: int, seat: int, limit: int, seed: int,
    rests_at: int,
) -> None:  # fmt: skip
    """Spend until nothing is left for the smallest call, telling each step once it is done.

    ``took AMOUNT`` a call was let in, ``used AMOUNT`` the oldest open one has ended, ``even``
    nothing is open, so the count is true as far as this worker goes.  After so many lines it waits
    to be told to go on.
    """
    rng = random.Random(seed)
    lines = 0

    def tell(text: str) -> None:
        nonlocal lines
        say(text)
        lines += 1
        if lines == rests_at:
            hear()

    epochs = Segment.attach(epochs_fd, 8 * SEATS)
    quotas = SharedQuotas(
        QuotaSegment.map_inherited(quotas_fd, SEATS, QUOTA_ROWS),
        RowTable.attach(fd, locks_fd, ROWS),
        seat=seat, epoch_of=lambda n: epochs.words[n], sharers=4, refused=SilentSeries(),
    )  # fmt: skip
    world = FakeWorld()
    env = replace(world.env, quotas=quotas)
    stage = FEATURE.build(Config(overall=Periods(month=limit)), env)
    say("ready")
    hear()
    refused = False
    while not refused:
        open_calls: list[tuple[Call, int]] = []
        for _ in range(rng.randrange(1, 6)):
            asked = 0 if rng.random() < 0.1 else rng.randrange(1, 400)
            call = make_call(orjson.dumps({"max_tokens": asked}))
            try:
                stage.before(call)
            except Shed:
                continue
            except OverBudget:
                refused = asked == 0
                break
            amount = asked + -(-len(call.body) // 4)
            tell(f"took {amount}")
            open_calls.append((call, amount))
        for call, amount in open_calls:
            used = rng.randrange(0, amount + 1)
            tell_ended(call, Ending(Terminal.DONE, 0, used, None, 1))
            tell(f"used {used}")
            if rng.random() < 0.05:
                world.advance(0.06)
        tell("even")
    world.advance(0.06)
    say("spent")


if __name__ == "__main__":
    play({"spend": spend})
