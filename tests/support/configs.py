"""Configurations that several files of tests put before a gateway's backends."""

from __future__ import annotations

ONE_BACKEND = """
[[backends]]
name = "up"
kind = "openai"
base_url = "{base_url}"
models = ["*"]
"""
WITH_A_MAPPED_NAME = (
    ONE_BACKEND
    + """
[[backends]]
name = "mapped"
kind = "openai"
base_url = "{base_url}"
models = ["tiny"]
model_map = {{ tiny = "{model}" }}

[[routes]]
models = ["tiny"]
backends = ["mapped"]

[[routes]]
models = ["*"]
backends = ["up"]
"""
)
BOTH_FAMILIES = """
[[backends]]
name = "claude"
kind = "anthropic"
base_url = "{base_url}"
api_key = "sk-ant-of-the-gateway"
models = ["claude-*", "echo"]

[[backends]]
name = "open"
kind = "openai"
base_url = "{base_url}"
api_key = "sk-of-the-gateway"
models = ["gpt-*", "open-echo"]
model_map = {{ open-echo = "echo" }}
"""
