"""Blocks of the KV cache; that they are never lost is a property test's."""

from __future__ import annotations

from tpo_mp.simulator.engine_blocks import KvBlocks


def test_prefix_is_found_as_far_as_it_is_known() -> None:
    """A gap ends it, whatever is known behind."""
    kv = KvBlocks(4)
    blocks = kv.take(3)
    for block, name in zip(blocks, (b"a", b"b", b"c"), strict=True):
        kv.name(block, name)
    assert kv.find([b"a", b"b", b"c", b"d"]) == blocks
    assert kv.find([b"a", b"x", b"c"]) == blocks[:1]


def test_end_of_a_prefix_is_given_up_before_its_beginning() -> None:
    """What is left of it can still be found."""
    kv = KvBlocks(3)
    blocks = kv.take(3)
    for block, name in zip(blocks, (b"a", b"b", b"c"), strict=True):
        kv.name(block, name)
    kv.give(blocks)
    kv.take(1)
    assert kv.find([b"a", b"b", b"c"]) == blocks[:2]


def test_shared_block_is_free_when_the_last_lets_go() -> None:
    """And those that lie free are told apart from those in use."""
    kv = KvBlocks(2)
    (block,) = kv.take(1)
    kv.name(block, b"a")
    kv.share([block])
    kv.give([block])
    assert (kv.free, kv.idle([block])) == (1, 0)
    kv.give([block])
    assert (kv.free, kv.idle([block])) == (2, 1)


def test_nothing_is_found_without_caching() -> None:
    """Names are not kept."""
    kv = KvBlocks(2, caching=False)
    kv.name(kv.take(1)[0], b"a")
    assert kv.find([b"a"]) == []
