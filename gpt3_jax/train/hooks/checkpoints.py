"""Saves checkpoints on a token cadence and at the end of training, in the background."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import jax

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError
from gpt3_jax.train.checkpoint.integrity import array_checksums, named_leaves
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.hooks.hook import Hook, Moment, Step
from gpt3_jax.train.hooks.telemetry import Telemetry
from gpt3_jax.train.setup import Run


class SaveCheckpoints(Hook):
    """Saves every `checkpoint.every_tokens`, and once more at the end."""

    def __init__(self, run: Run, store: CheckpointStore, record: dict[str, Any], telemetry: Telemetry) -> None:
        """`record` is saved with each checkpoint."""
        self.every_tokens = run.config.checkpoint.every_tokens
        self._run, self._store, self._record, self._telemetry = run, store, record, telemetry

    def prepare(self, moment: Moment) -> None:
        array_checksums(named_leaves(moment.state))  # compiles the checksum that the first save calls

    def see(self, step: Step) -> None:
        """Raises the RunError of a failed background save."""
        self._store.check()

    def act(self, moment: Moment) -> None:
        if moment.tokens:
            self._run.stream.check_files()  # the data that was trained on must be what the record says
            self._store.save(moment.tokens, moment.steps, moment.state, self._record)

    def end(self, moment: Moment) -> None:
        with self._telemetry.pause("saving a checkpoint"):
            self.act(moment)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            with self._telemetry.pause("waiting for the checkpoint to be on disk"):
                self._store.close()
        elif isinstance(error, Exception):
            self._let_the_save_finish()

    def _let_the_save_finish(self) -> None:
        """Before an error ends the run, finishes the save in progress, or warns that it may be lost.

        In a multi-process run, processes must not wait for each other here: the one that failed may be gone.
        """
        if (tokens := self._store.pending()) is None:
            return
        if jax.process_count() > 1:
            log.warning(f"the checkpoint at {tokens:,} tokens was being written: it may be lost")
            return
        try:
            self._store.wait()
        except RunError as failure:
            log.warning(f"{failure}")
