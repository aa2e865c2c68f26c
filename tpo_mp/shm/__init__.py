"""Shared memory: every structure opens with its own byte-level specification."""
