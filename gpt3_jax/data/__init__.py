"""Text to token shards, and token shards to global batches. The order of sequences is a function of (seed, index)."""
