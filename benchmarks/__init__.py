"""Measurements of the gateway against its gates and its peers; nothing here is shipped."""
