"""LLM gateway and orchestrator: one pinned process per core, one truth per host."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .library import spawn_pipeline

__all__ = ["__version__", "spawn_pipeline"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the library when it is asked for; processes of the gateway never do."""
    if name == "spawn_pipeline":
        from .library import spawn_pipeline

        return spawn_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
