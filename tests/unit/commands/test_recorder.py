"""The recording proxy's cutting of streams into events."""

from __future__ import annotations

from tpo_mp.commands.recorder import events_of, whole


def test_events_have_the_time_their_end_came() -> None:
    """However reads cut them, in both kinds of line ends."""
    arrived = [(0.1, b"data: 1"), (0.2, b"\n\ndata: 2\r\n\r\nda"), (0.3, b"ta: 3\n\n"),
               (0.4, b"tail")]  # fmt: skip
    assert events_of(arrived) == (
        (0.2, "data: 1\n\n"), (0.2, "data: 2\r\n\r\n"), (0.3, "data: 3\n\n"), (0.4, "tail"),
    )  # fmt: skip


def test_a_character_may_be_cut_in_two() -> None:
    """What is no text at all is not written down."""
    word = "data: é\n\n".encode()
    assert events_of([(0.1, word[:7]), (0.2, word[7:])]) == ((0.2, "data: é\n\n"),)
    assert events_of([(0.1, b"\xff\n\n")]) is None
    assert whole([(0.1, b"a"), (0.2, b"b")]) == ((0.2, "ab"),)
    assert whole([(0.1, b"\xff")]) is None
