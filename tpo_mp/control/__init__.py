"""The process that owns the durable store and the ops port; only durability `always` waits for it."""
