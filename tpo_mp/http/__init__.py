"""The HTTP edge: fast lane, full lane, upstream client, SSE framing."""
