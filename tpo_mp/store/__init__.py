"""Durable store: SQLite tables, checksummed segments, and the ring client to control."""
