"""On a loss or gradient that is not finite, stops the run, or warns and continues."""

from __future__ import annotations

import numpy as np

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.hooks.hook import Hook, Step
from gpt3_jax.train.setup import Run


class StopIfNotFinite(Hook):
    """Implements `train.nonfinite`. The step did not update the state; this decides whether the run continues."""

    def __init__(self, run: Run, store: CheckpointStore) -> None:
        self._run, self._store = run, store

    def see(self, step: Step) -> None:
        """Raises RunError with the place in the data and the last good checkpoint, unless `train.nonfinite` is skip."""
        if step.metrics.finite:
            return
        first, last = step.batch.first, step.batch.first + step.batch.sequences - 1
        where = self._run.stream.locate(np.array([first, last]))
        line = (
            f"loss {float(step.metrics.loss)} and gradient norm {float(step.metrics.grad_norm)} are not both finite at "
            f"step {step.number}, sequences {first} to {last} (from {where[0]} to {where[1]})"
        )
        if self._run.config.train.nonfinite == "skip":
            log.warning(f"{line}; update skipped")
            return
        failed = ""
        try:
            self._store.wait()
        except RunError as error:  # report both errors in one line: neither may hide the other
            failed = f"; and {error}"
        tokens = self._store.last_good()
        good = "no checkpoint was written" if tokens is None else f"the last good checkpoint is at {tokens:,} tokens"
        raise RunError(
            f"{line}; {good} in {self._store.directory}; the state was not updated: lower optimizer.peak_lr, look at "
            f"the data, or skip such updates by --train.nonfinite skip{failed}"
        )
