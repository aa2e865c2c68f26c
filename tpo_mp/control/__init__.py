"""The process that owns the durable store and the ops port; no request waits for it."""
