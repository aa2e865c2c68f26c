"""Routing strategies, one file each, named in `[[routes]] strategy`."""
