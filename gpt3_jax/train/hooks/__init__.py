"""Actions of the training loop, one a file: what watches each step's metrics, and what acts on a token cadence."""
