"""``python -m tpo_mp``: the same as the ``tpo-mp`` command."""

from __future__ import annotations

from .cli import main

main()
