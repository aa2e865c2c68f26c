"""The config buffer between processes: a blob is whole, or gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.shm_rows.actors import payload
from tests.support.actor import StartActor
from tpo_mp.shm.epochs import ConfigBuffer

EPOCHS = 300


@pytest.fixture
def buffer(platform: str) -> Iterator[ConfigBuffer]:
    """A buffer that children inherit."""
    made = ConfigBuffer.create()
    yield made
    made.close()


def test_a_reader_never_gets_a_mixed_blob(buffer: ConfigBuffer, actor: StartActor) -> None:
    """Publish as fast as possible while another process reads both halves."""
    reader = actor("read_config", buffer.fd, EPOCHS, fds=(buffer.fd,))
    assert reader.said() == "ready"
    for epoch in range(1, EPOCHS + 1):
        buffer.publish(epoch, payload(epoch, 100_000))
    assert int(reader.said()) > 0
    assert reader.process.wait() == 0
