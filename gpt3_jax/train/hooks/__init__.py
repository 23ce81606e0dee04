"""Actions of the training loop, one per file. They watch each step's metrics or act on a token cadence."""
