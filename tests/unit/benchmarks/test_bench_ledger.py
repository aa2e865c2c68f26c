"""Call records are counted in the files of the store."""

import msgspec

from benchmarks.ledger import records
from tpo_mp.store.segment_files import LogLimits
from tpo_mp.store.segments import SegmentLog


def test_records_of_every_batch_and_file_are_counted(tmp_path):
    """A batch holds many records, a directory many files."""
    log = SegmentLog(tmp_path / "8080" / "calls", limits=LogLimits(), durability="no")
    log.append([msgspec.msgpack.encode([["a"], ["b"]]), msgspec.msgpack.encode([["c"]])])
    log.close()
    assert records(tmp_path) == 3


def test_state_without_records_counts_none(tmp_path):
    """A gateway that answered nothing has nothing to count."""
    assert records(tmp_path) == 0
