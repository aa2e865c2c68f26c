"""The process that owns the store and the ops port; only durability ``always`` waits for it."""
