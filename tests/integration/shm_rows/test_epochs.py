"""The config buffer between processes: a blob is whole, or gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.shm_rows.actors import payload
from tests.support.actor import StartActor
from tpo_mp.shm.epochs import ConfigBuffer

READS = 300


@pytest.fixture
def buffer(platform: str) -> Iterator[ConfigBuffer]:
    """A buffer that children inherit."""
    made = ConfigBuffer.create()
    yield made
    made.close()


def test_a_reader_never_gets_a_mixed_blob(buffer: ConfigBuffer, actor: StartActor) -> None:
    """Publish as fast as possible while another process reads both halves."""
    reader = actor("read_config", buffer.fd, READS, fds=(buffer.fd,))
    assert reader.said() == "ready"
    epoch = 0
    while reader.process.poll() is None:
        epoch += 1
        buffer.publish(epoch, payload(epoch, 100_000))
    assert reader.process.returncode == 0
