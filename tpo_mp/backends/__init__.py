"""Backends, one file each, named in `[[backends]] kind`."""
