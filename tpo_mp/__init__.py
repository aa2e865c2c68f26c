"""LLM gateway and orchestrator: one pinned process per core, one truth per host."""

__version__ = "0.1.0"
