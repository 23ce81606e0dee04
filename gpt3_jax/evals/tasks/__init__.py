"""The tasks: one declarative entry each, and what reads or generates their examples."""
