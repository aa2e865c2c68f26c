"""HTTP faces, one file each: routes and handlers."""
