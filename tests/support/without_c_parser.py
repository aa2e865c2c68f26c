"""A worker whose aiohttp has no C parser, as one built without its extensions has none.

The variable is set here because the supervisor passes no such variable on.
"""

from __future__ import annotations

import os
import sys

from tpo_mp.worker.__main__ import _boot

if __name__ == "__main__":
    os.environ["AIOHTTP_NO_EXTENSIONS"] = "1"
    sys.exit(_boot())
