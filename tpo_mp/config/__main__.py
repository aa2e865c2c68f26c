"""``python -m tpo_mp.config``: the compile child."""

from __future__ import annotations

import gc
import sys

gc.disable()  # it lives for a moment, and modules make no garbage worth looking for

from .compile import main  # noqa: E402 - imported without looking for garbage

sys.exit(main())
