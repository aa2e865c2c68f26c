"""Model names as metric labels: the config's and what was answered for, not what a client says."""

from __future__ import annotations

from tpo_mp.worker.model_labels import MAX_LEARNT, ModelLabels


def test_names_of_the_config_are_labels() -> None:
    """Those of an earlier config stay: their series go on."""
    labels = ModelLabels()
    labels.use(["a", "b"])
    labels.use(["c"])
    assert labels.known == {"a", "b", "c"}


def test_names_nobody_answered_for_are_other() -> None:
    """However often they are asked for."""
    labels = ModelLabels()
    for status in (400, 404, 499, 502):
        assert labels.label("invented", status) == "other"
    assert labels.known == set()


def test_names_that_were_answered_for_are_learnt_up_to_a_limit() -> None:
    """A backend that serves any name does not fill the page."""
    labels = ModelLabels()
    given = [labels.label(f"m-{i}", 200) for i in range(MAX_LEARNT + 5)]
    assert given == [f"m-{i}" for i in range(MAX_LEARNT)] + ["other"] * 5
    assert labels.known == {f"m-{i}" for i in range(MAX_LEARNT)}
