"""Writes a run's checkpoints in the background, and verifies that each can be read before it counts."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from gpt3_jax.cluster.agreement import everywhere, from_lead, is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError
from gpt3_jax.train.checkpoint import arrays as on_disk
from gpt3_jax.train.checkpoint.integrity import array_checksums, describe, named_leaves, record_digest
from gpt3_jax.train.checkpoint.reader import FORMAT, CheckpointReader
from gpt3_jax.train.checkpoint.storage_errors import UNREADABLE, disk_full, one_line

_SEEN_AFTER_S = 90.0
"""How long another process may not see what the lead process wrote: NFS clients cache a folder's contents."""


class CheckpointStore(CheckpointReader):
    """The checkpoints of a run. Reads them as `CheckpointReader` does, writes new ones and deletes old ones."""

    def __init__(self, directory: Path | str, *, keep_last: int, keep_every_tokens: int) -> None:
        """Creates the folder. Keeps the newest `keep_last` checkpoints and, permanently, the first one at or after each
        multiple of `keep_every_tokens` tokens (0: none). Raises RunError if the folder cannot be created."""
        super().__init__(directory)
        self._keep_last = keep_last
        self._keep_every = keep_every_tokens
        self._pending: tuple[int, Future[None]] | None = None
        self._unretired = False
        """Whether a save has ended since old checkpoints were last deleted."""
        why = ""
        if is_lead():
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                why = one_line(error)
        if why := from_lead(why):
            raise RunError(f"cannot make the checkpoint folder {self.directory}: {why}")

    def save(self, tokens: int, step: int, state: Any, record: dict[str, Any], *, wait: bool = False) -> None:
        """Saves `state`, a tree of `jax.Array`, as the checkpoint at `tokens`. Returns once it is copied to the host.

        The caller may donate `state` at once. `record` is any JSON. Does nothing if this store has already saved or
        restored the checkpoint at `tokens`. Waits for the previous save and raises its failure.

        Raises RunError if a save fails, or if a checkpoint that this run does not know exists at `tokens`.
        """
        self._finish()
        self._retire_together()
        if tokens in self._whole:
            return
        self._make_room(tokens)
        leaves = named_leaves(state)
        try:
            with jax.transfer_guard("allow"):
                sums = array_checksums(leaves)
                body = {
                    "format": FORMAT,
                    "step": step,
                    "tokens": tokens,
                    "record": record,
                    "leaves": {name: {**describe(leaf), "checksum": sums[name]} for name, leaf in leaves.items()},
                }
                # The lead's, in all processes: a configuration holds the index of its process. In JSON, tuples become
                # lists, as when it is read back.
                body = json.loads(from_lead(json.dumps(body) if is_lead() else ""))
                written = on_disk.save(self._path(tokens), leaves, {"body": body, "sha256": record_digest(body)})
        except (OSError, RuntimeError, ValueError) as error:
            raise self._save_error(tokens, error) from error
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending = (tokens, thread.submit(self._complete, tokens, written, body))
        thread.shutdown(wait=False)
        if wait:
            self.wait()

    def check(self) -> None:
        """Raises the RunError of a failed background save. Never waits, so that the loop can call it at every step."""
        self._finish(timeout=0)

    def wait(self) -> None:
        """Waits for the background save and deletes old checkpoints. Raises RunError if the save failed."""
        self._finish()

    def pending(self) -> int | None:
        """Tokens of the save in progress, or None."""
        return self._pending[0] if self._pending else None

    def last_good(self) -> int | None:
        """Tokens of the newest checkpoint that this store has restored, or saved completely."""
        return max(self._whole, default=None)

    def close(self) -> None:
        """Waits for the background save, at the end of a run. With several processes: in all of them, at a good end.

        Raises RunError when the save failed.
        """
        self._finish()
        self._retire_together()

    def _complete(self, tokens: int, written: Callable[[], None], body: dict[str, Any]) -> None:
        """Waits for a save, in a thread of its own, and verifies that a restore would find it.

        Each process verifies on its own. Raises `_Unreadable`, or the error of the save.
        """
        written()
        patience = 0.0 if is_lead() else _SEEN_AFTER_S
        deadline = time.monotonic() + patience
        while why := self._unreadable(tokens, body):
            if time.monotonic() >= deadline:
                raise _Unreadable(why)
            time.sleep(1.0)

    def _unreadable(self, tokens: int, body: dict[str, Any]) -> str:
        """Why a restore could not read the checkpoint at `tokens`; empty if index and sizes show that it could."""
        try:
            if on_disk.read_metadata(self._path(tokens)) != {"body": body, "sha256": record_digest(body)}:
                return "its record is not the one that was written"
            return on_disk.missing(self._path(tokens), body["leaves"], whole=is_lead())
        except UNREADABLE as error:
            return one_line(error)

    def _finish(self, timeout: float | None = None) -> None:
        if self._pending is None:
            return
        tokens, complete = self._pending
        try:
            complete.result(timeout=timeout)
        except (OSError, RuntimeError, ValueError, _Unreadable) as error:
            # Still running. A network disk's ETIMEDOUT is a TimeoutError too, but means that the save has failed.
            if timeout is not None and isinstance(error, TimeoutError) and error.errno is None:
                return
            self._pending = None
            raise self._save_error(tokens, error) from error
        self._pending = None
        self._whole.add(tokens)
        self._unretired = True
        if jax.process_count() == 1:
            self._retire_together()

    def _retire_together(self) -> None:
        """Deletes old checkpoints once every process knows that it can read the new one."""
        if not self._unretired:
            return
        self._unretired = False
        everywhere(True, "read back the checkpoint that was saved")
        if is_lead():
            try:
                self._retire()
            except OSError as error:  # a run goes on with too many checkpoints
                log.warning(f"could not look for old checkpoints in {self.directory}: {one_line(error)}")

    def _save_error(self, tokens: int, error: Exception) -> RunError:
        """The error for a failed save. Removes its remains, which may be what fills a full disk."""
        last = self.last_good()
        good = "there is no good checkpoint yet" if last is None else f"the last good one is {self._path(last)}"
        if isinstance(error, _Unreadable):
            return RunError(
                f"checkpoint {self._path(tokens)} was saved but cannot be read: {error}; {good}; look at the disk, or "
                "choose another train.run_dir"
            )
        why = one_line(error)
        if disk_full(error):
            why = f"the disk is full ({why})"
        with contextlib.suppress(OSError):  # if even the folder cannot be read, `why` says so
            self._remove_remains()
        return RunError(f"could not save checkpoint {self._path(tokens)}: {why}; {good}")

    def _make_room(self, tokens: int) -> None:
        """Moves damaged checkpoints aside and removes unfinished ones of earlier runs, before the first save."""
        why = ""
        if is_lead():
            try:
                present = self._list()
                for damaged in sorted(self._damaged.keys() & set(present)):
                    aside = self._free_name(f"damaged-tokens-{damaged}")
                    self._path(damaged).rename(aside)
                    log.warning(f"moved damaged checkpoint {self._path(damaged)} to {aside}")
                self._remove_remains()
                if tokens in present and tokens not in self._damaged:
                    why = "a checkpoint that this run did not restore is in its place; move it away"
            except OSError as error:
                why = one_line(error)
        if why := from_lead(why):
            raise RunError(f"could not save checkpoint {self._path(tokens)}: {why}")
        self._damaged.clear()

    def _free_name(self, name: str) -> Path:
        path, n = self.directory / name, 1
        while path.exists():
            n += 1
            path = self.directory / f"{name}-{n}"
        return path

    def _remove_remains(self) -> None:
        for path in self._children():
            if path.name.startswith("deleting-") or re.match(r"tokens-\d+\.orbax-checkpoint-tmp", path.name):
                self._remove(path)

    def _retire(self) -> None:
        """Deletes the checkpoints that are neither among the newest nor kept by `keep_every_tokens`."""
        tokens = sorted(self._list())
        keep = set(tokens[-self._keep_last :])
        if self._keep_every:
            first: dict[int, int] = {}
            for t in tokens:
                first.setdefault(t // self._keep_every, t)
            keep |= {t for multiple, t in first.items() if multiple > 0}
        for t in tokens:
            if t not in keep:
                # Deletion is not atomic but a rename is: a renamed folder can no longer be taken for a checkpoint.
                gone = self._free_name(f"deleting-tokens-{t}")
                try:
                    self._path(t).rename(gone)
                except OSError as error:
                    log.warning(f"could not delete old checkpoint {self._path(t)}: {one_line(error)}")
                    continue
                self._remove(gone)

    def _remove(self, path: Path) -> None:
        try:
            shutil.rmtree(path)
        except OSError as error:
            log.warning(f"could not delete {path}: {one_line(error)}")


class _Unreadable(Exception):
    """A save that completed but left a checkpoint that no restore can read."""
