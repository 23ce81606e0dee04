"""``python -m gpt3_jax``: the same as ``gpt3-jax``."""

from __future__ import annotations

import sys

from gpt3_jax.cli.main import run

if __name__ == "__main__":  # worker processes import this file again, and must not start the command again
    sys.exit(run())
