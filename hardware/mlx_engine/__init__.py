"""A model served by MLX: one process, one dedicated thread for the model, OpenAI's and Anthropic's
HTTP on a loopback port.  ``python -m hardware.mlx_engine --help``.

``generation`` owns the model and its thread, ``speech`` turns tokens into text, thoughts and tool
calls, ``prompting`` turns requests into tokens, ``service`` is the HTTP around them and ``rings``
the way in for the workers of a host that keeps this engine.
"""
