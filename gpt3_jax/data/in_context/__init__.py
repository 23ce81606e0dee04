"""Generated training text from which a small model learns in context: rules, documents of examples, token shards."""
