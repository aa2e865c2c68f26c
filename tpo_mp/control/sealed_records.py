"""Seals what call records say of prompts and answers, as they go to the disk, and opens it again.

A batch comes from a worker as it packed it; where there are keys (``store.sealing``), each text in
it becomes sealed bytes, which are about its call and its field.

Invariants: with keys no text of a batch that comes here is written in the clear; what no key opens
is told as ``locked``, with everything else that is known of the call.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from tpo_mp.shm.frames import RecordFrame
from tpo_mp.store.sealing import Locked, Seals

_decode = msgspec.msgpack.Decoder(list[RecordFrame]).decode
_encode = msgspec.msgpack.Encoder().encode


def sealed(batch: bytes, seals: Seals) -> bytes:
    """The batch as it may lie on a disk; one that is unreadable, and so never read, is emptied."""
    if not seals:
        return batch
    try:
        records = _decode(batch)
    except msgspec.MsgspecError:
        return _encode([])
    found = False
    for number, record in enumerate(records):
        if record.input is None and record.output is None:
            continue
        found = True
        made = [
            None if text is None else seals.seal(text.encode("utf-8", "surrogatepass"), about)
            for text, about in zip((record.input, record.output), _abouts(record), strict=True)
        ]
        records[number] = replace(record, input=None, output=None, sealed=made)
    return _encode(records) if found else batch


def opened(record: RecordFrame, seals: Seals) -> tuple[str | None, str | None, bool]:
    """Its input and output, and whether one of them is locked."""
    if not record.sealed:
        return record.input, record.output, False
    locked = False
    texts: list[str | None] = []
    for found, about in zip(record.sealed, _abouts(record), strict=False):
        text = None
        if found is not None:
            try:
                text = seals.open(found, about).decode("utf-8", "surrogatepass")
            except Locked:
                locked = True
        texts.append(text)
    said, answered = texts
    return said, answered, locked


def _abouts(record: RecordFrame) -> tuple[bytes, bytes]:
    """What each of its texts is about: moved elsewhere, none opens."""
    call = f"calls\0{record.call_id}\0".encode()
    return call + b"input", call + b"output"
