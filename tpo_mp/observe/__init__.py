"""Metrics exposition, access lines and rare-event logs."""
