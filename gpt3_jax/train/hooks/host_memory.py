"""On a CPU: returns free memory to the kernel when the process has grown."""

from __future__ import annotations

from gpt3_jax.train.hooks.hook import Hook, Step
from gpt3_jax.train.host_memory import give_back, resident

GROWTH = 1.2
"""How much resident memory may grow before free pages are returned."""


class GiveBackMemory(Hook):
    """Keeps the process near what one step needs (`train.host_memory`). Called while the next step runs, so that the
    pages that it uses stay."""

    def __init__(self) -> None:
        self._least = 0
        """The least resident since memory was last returned; 0 before the first step: compiling leaves some, too."""

    def see(self, step: Step) -> None:
        now = resident()
        if now is None:
            return
        if now > GROWTH * self._least:
            give_back()
            self._least = resident() or now
        else:
            self._least = min(self._least, now)
