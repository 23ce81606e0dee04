"""On a CPU: returns free memory to the kernel when the process has grown."""

from __future__ import annotations

from gpt3_jax.train.hooks.hook import Hook, Step
from gpt3_jax.train.host_memory import give_back, resident

GROWTH = 1.2
"""How much resident memory may grow over what a step needs before free pages are returned."""


class GiveBackMemory(Hook):
    """Keeps the process near what a step needs (`train.host_memory`). Called while the next step runs, so that the
    pages that it uses stay."""

    def __init__(self) -> None:
        self._needed = 0
        """The most that was resident after the first step, or after one that followed a return of memory."""
        self._returned = True

    def see(self, step: Step) -> None:
        now = resident()
        if now is None:
            return
        if self._returned:
            self._needed, self._returned = max(self._needed, now), False
        if now > GROWTH * self._needed:
            give_back()
            self._returned = True
