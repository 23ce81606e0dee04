"""N-grams of words: looks for those of a few texts in all of a corpus, in one pass over it."""
