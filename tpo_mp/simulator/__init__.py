"""Models of provider behaviour behind the simulator backend."""
