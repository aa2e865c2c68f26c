"""Local engines and machine topology; comes in by entry points only."""
