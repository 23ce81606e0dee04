"""The model over a mesh without gradients: log-likelihoods, and generation with a cache."""
