"""Several processes, and the end of one: start-up, agreement, stop signals, the run lock, leaving."""
