"""Text to token shards, and token shards to global batches in an order that is a function of (seed, index)."""
