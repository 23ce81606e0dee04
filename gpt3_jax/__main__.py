"""``python -m gpt3_jax``: the same as ``gpt3-jax``."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # worker processes import this file again, and must not start the command again
    from gpt3_jax.cluster import signals

    signals.install()  # before what takes its time to import
    from gpt3_jax.cli.main import run

    sys.exit(run())
