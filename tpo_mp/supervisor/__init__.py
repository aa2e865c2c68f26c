"""The process that owns sockets, shared memory and children, and sees no prompt."""
