"""A worker of another version of the code, from the moment a file says so.

``STATE_DIR/other-version``, ``other-layout`` or ``other-handoff`` exists: what a half-done upgrade
looks like to a supervisor that still runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tpo_mp
from tpo_mp.shm import plane
from tpo_mp.shm.handoff import ENV, Handoff
from tpo_mp.worker.__main__ import _boot

if __name__ == "__main__":
    state_dir = Path(Handoff.from_env().state_dir)
    if (state_dir / "other-version").exists():
        tpo_mp.__version__ = "0.0.0"
    if (state_dir / "other-layout").exists():
        plane.LAYOUT += 1
    if (state_dir / "other-handoff").exists():
        # The new code has another field where this one has its ports.
        os.environ[ENV] = os.environ[ENV].replace('"ops_port"', '"operations_port"')
    sys.exit(_boot())
