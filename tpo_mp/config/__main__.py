"""``python -m tpo_mp.config``: the compile child."""

from __future__ import annotations

import sys

from .compile import main

sys.exit(main())
