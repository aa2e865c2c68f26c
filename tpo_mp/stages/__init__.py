"""Stage features, one file each, named in `[pipeline] stages`."""
