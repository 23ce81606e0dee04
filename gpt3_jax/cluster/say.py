"""How the project speaks to the person: one line on stderr, from one of several processes."""

from __future__ import annotations

import sys

from gpt3_jax.cluster.agreement import is_lead


def say_to_stderr(line: str) -> None:
    """One line for the person, in the lead process."""
    if is_lead():
        print(line, file=sys.stderr, flush=True)
