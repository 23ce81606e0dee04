"""Multi-process runs: start-up, agreement, stop signals, the run lock, and exit."""
