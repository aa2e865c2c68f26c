"""The second tier of a configuration: made where Redis is named, kept until that changes."""

from __future__ import annotations

from dataclasses import replace

from tpo_mp.config.tree import Config
from tpo_mp.ports import Env


def with_tier(env: Env, config: Config, before: Config | None = None) -> Env:
    """``env`` with the tier that ``config`` names; that of ``before`` is the one in ``env``."""
    wanted = config.distributed
    if before is not None and before.distributed == wanted:
        return env
    if wanted is None or not wanted.redis:
        return replace(env, tier=None)
    from tpo_mp.store.answer_tier import RedisTier

    tier = RedisTier(
        wanted.redis, wait_s=wanted.cache_wait_s, most=env.cache.most,
        random=env.random, metrics=env.metrics, count=env.cache.count_tier, warn=env.log.warning,
    )  # fmt: skip
    return replace(env, tier=tier)


def given_back(env: Env, after: Env | None = None) -> Env:
    """Close the tier of ``env`` unless ``after``, which is answered, has the same."""
    after = after or replace(env, tier=None)
    if env.tier is not None and env.tier is not after.tier:
        env.tier.close()
    return after
