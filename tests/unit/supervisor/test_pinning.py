"""How cores are dealt out to workers and engines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.supervisor.pinning import UNPINNED, Core, EngineNeed, assign, deal_rest


def two_sockets(cores: int = 8, threads: int = 2) -> tuple[Core, ...]:
    """Two memory nodes whose CPUs alternate, as some firmware numbers them."""
    return tuple(
        Core(tuple(core + t * cores for t in range(threads)), node=core % 2, cache=core % 2)
        for core in range(cores)
    )


def test_workers_are_put_on_one_memory_node() -> None:
    """Though its CPUs are not numbered in a row."""
    assert assign(two_sockets(), 4).slots == (0, 2, 4, 6)


def test_threads_of_a_core_are_used_when_cores_run_out() -> None:
    """Each core once before any twice, and the plan says so."""
    plan = assign(two_sockets(4), 6)
    assert set(plan.slots[:4]) == {0, 1, 2, 3}
    assert "thread" in plan.reason


def test_an_engine_gets_whole_cores_next_to_its_gpu() -> None:
    """And the workers the other node."""
    plan = assign(two_sockets(), 4, [EngineNeed("big", cores=4, node=0)])
    assert set(plan.engines["big"]) == {0, 8, 2, 10, 4, 12, 6, 14}
    assert plan.slots == (1, 3, 5, 7)


def test_an_engine_that_asks_for_no_number_gets_what_workers_leave() -> None:
    """Two of them share it evenly."""
    plan = assign(two_sockets(), 2, [EngineNeed("a"), EngineNeed("b")])
    assert [len(cpus) for cpus in plan.engines.values()] == [6, 6]


def test_an_engine_that_asks_for_too_much_gets_less_and_is_named() -> None:
    """Workers keep a core each."""
    plan = assign(two_sockets(), 4, [EngineNeed("greedy", cores=64)])
    assert plan.pinned
    assert len(plan.engines["greedy"]) == 8
    assert "greedy" in plan.reason


def test_where_cores_do_not_do_nobody_is_pinned() -> None:
    """One core cannot be kept apart for two."""
    plan = assign((Core((0,)),), 1, [EngineNeed("e")])
    assert plan.slots == (UNPINNED,)
    assert plan.engines == {"e": ()}
    assert plan.reason.startswith("off: ")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=40),
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from([None, 0, 1, 9])), max_size=4),
)
def test_nothing_is_dealt_twice(
    made: list[tuple[int, int]], workers: int, asked: list[tuple[int, int | None]]
) -> None:
    """Whatever the machine: no CPU in two places, no core with a worker and an engine on it."""
    cores, cpu = [], 0
    for node, threads in made:
        cores.append(Core(tuple(range(cpu, cpu + threads)), node, node))
        cpu += threads
    needs = [EngineNeed(f"e{n}", count, node) for n, (count, node) in enumerate(asked)]
    plan = assign(cores, workers, needs)
    assert len(plan.slots) == workers
    assert set(plan.engines) == {need.name for need in needs}
    if not plan.pinned:
        assert set(plan.slots) == {UNPINNED}
        assert not any(plan.engines.values())
        return
    dealt = [*plan.slots, *(cpu for cpus in plan.engines.values() for cpu in cpus)]
    assert len(dealt) == len(set(dealt))
    assert all(plan.engines.values())
    core_of = {cpu: core for core in cores for cpu in core.cpus}
    engines = {core_of[cpu] for cpus in plan.engines.values() for cpu in cpus}
    assert not engines & {core_of[cpu] for cpu in plan.slots}


def test_an_engine_that_comes_later_gets_whole_cores_that_nobody_has() -> None:
    """As many as it asks for and there are; none is no error."""
    cores = two_sockets()
    taken = {cpu for core in cores[:6] for cpu in core.cpus[:1]}
    rest = {cpu for core in cores[6:] for cpu in core.cpus}
    found = deal_rest(cores, taken, [EngineNeed("late", cores=1), EngineNeed("any")])
    assert len(found["late"]) == len(found["any"]) == 2
    assert {*found["late"], *found["any"]} == rest
    assert deal_rest(cores, range(16), [EngineNeed("late")]) == {"late": ()}
