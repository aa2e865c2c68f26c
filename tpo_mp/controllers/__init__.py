"""Pure decision makers over a host snapshot, one file each."""
