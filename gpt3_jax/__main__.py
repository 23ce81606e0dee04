"""``python -m gpt3_jax``: the same as ``gpt3-jax``."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # worker processes import this file again
    from gpt3_jax.cluster import signals

    signals.install()  # before the slow imports
    from gpt3_jax.cli.main import run

    sys.exit(run())
