"""One shard: accepts connections, owns calls, runs the pipeline."""
