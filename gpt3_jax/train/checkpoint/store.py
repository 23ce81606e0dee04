"""Checkpoints: written in the background, checked when read, never half there and never silently absent.

The only importer of Orbax, which writes and reads the sharded arrays. What it leaves out stands here: checksums
(its data has none), the fall-back from a damaged checkpoint to the one before, and retention in tokens.

On disk, a folder holds ``tokens-N`` (complete: Orbax renames it into place last), ``damaged-tokens-N`` (moved aside,
never deleted by us), and remains of what was interrupted: ``*.orbax-checkpoint-tmp`` (saves), ``deleting-*``.
Arrays have global shapes and flat names (``params/token_embedding``), so any mesh, ZeRO stage or device count can read
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from gpt3_jax.cluster.agreement import everywhere, from_lead, is_lead
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.train.checkpoint.integrity import (
    array_checksums,
    describe,
    named_leaves,
    record_digest,
    require_same_leaves,
)
from gpt3_jax.train.checkpoint.storage_errors import (
    UNREADABLE,
    bury_failed_tasks,
    disk_full,
    machine_at_fault,
    one_line,
)

FORMAT = 1
"""Version of what `CheckpointStore.save` writes into a checkpoint's metadata."""

_STATE = "state"
_NAME = re.compile(r"tokens-(\d+)")
_SAVE_TIMEOUT_S = 3600  # Orbax's 20 minutes are short for terabytes on a busy network disk


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and found whole."""

    step: int
    tokens: int
    state: Any
    """The tree that was asked for, with the shardings that were asked for."""
    record: dict[str, Any]
    """The JSON that `CheckpointStore.save` was given."""


class CheckpointReader:
    """Reads the checkpoints of a folder, newest first; never writes to it.

    With several processes all of them make the same calls; they read from a shared file system.
    """

    def __init__(self, directory: Path | str, *, say: Callable[[str], None]) -> None:
        """`say` is given one line for the person, in the lead process only."""
        # Orbax takes absolute paths only; an address such as gs://bucket/run is one already.
        local = "://" not in str(directory)
        self.directory = epath.Path(os.path.abspath(directory) if local else directory)
        self._say_line = say
        self._damaged: dict[int, str] = {}
        self._whole: set[int] = set()

    def checkpoints(self) -> list[int]:
        """Tokens of the checkpoints in the folder, ascending, whole or not. Raises RunError when it cannot be read."""
        return sorted(int(tokens) for tokens in self._from_folder(lambda: " ".join(map(str, self._list()))).split())

    def newest_record(self) -> tuple[int, dict[str, Any]] | None:
        """(tokens, record) of the newest checkpoint whose metadata is intact, without reading its arrays.

        None when the folder holds no checkpoint. Raises RunError when it holds some but none is readable.
        """
        found = self._found()
        for tokens in reversed(found):
            body = self._read_body(tokens)
            if body is not None:
                return tokens, body["record"]
        if found:
            raise self._none_readable()
        return None

    def restore(self, abstract_state: Any, *, only: str = "", tokens: int | None = None) -> Restored | None:
        """The newest whole checkpoint, as the tree of `jax.ShapeDtypeStruct` given; None if the folder has none.

        `only` names a field of the saved state (``"params"``): then `abstract_state` is that field's tree, and only
        its arrays are read and checked. `tokens` asks for that one checkpoint, without a fall-back. Leaves without
        a sharding go to the first local device. Checksums are compared before anything is returned; a checkpoint
        that is damaged is named aloud and the one before is tried.

        Raises UserError when the checkpoint's arrays have other names, shapes or dtypes than those asked for,
        RunError when checkpoints exist but none can be read.
        """
        wanted = named_leaves(abstract_state, only)
        found = self._found()
        if tokens is not None:
            if tokens not in found:
                raise UserError(f"{self.directory} has no checkpoint at {tokens} tokens; it has {found}")
            found = [tokens]
        for candidate in reversed(found):
            body = self._read_body(candidate)
            if body is None:
                continue
            require_same_leaves(body["leaves"], wanted, only, str(self._path(candidate)))
            arrays = self._load(candidate, wanted, body["leaves"], partial=bool(only))
            if arrays is None:
                continue
            self._whole.add(candidate)
            if candidate != found[-1]:
                self._say(f"using the checkpoint before: {self._path(candidate)}")
            state = jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[name] for name in wanted])
            return Restored(body["step"], candidate, state, body["record"])
        if found:
            raise self._none_readable()
        return None

    def _found(self) -> list[int]:
        found = self.checkpoints()
        if not found:
            aside = self._from_folder(
                lambda: " ".join(sorted(p.name for p in self._children() if p.name.startswith("damaged-")))
            )
            if aside:
                raise RunError(
                    f"{self.directory} holds no checkpoint but damaged ones ({aside}); delete them to start from zero"
                )
        return found

    def _from_folder(self, look: Callable[[], str]) -> str:
        """What the lead process sees in the folder, told to all; RunError in all when it cannot look."""
        answer = {}
        if is_lead():
            try:
                answer = {"seen": look()}
            except OSError as error:
                answer = {"failed": one_line(error)}
        answer = json.loads(from_lead(json.dumps(answer)))
        if "failed" in answer:
            raise RunError(f"cannot read the checkpoint folder {self.directory}: {answer['failed']}")
        return str(answer["seen"])

    def _children(self) -> list[epath.Path]:
        return list(self.directory.iterdir()) if is_lead() and self.directory.exists() else []

    def _list(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self._children())
        return [int(match[1]) for match in matches if match]

    def _path(self, tokens: int) -> epath.Path:
        return self.directory / f"tokens-{tokens}"

    def _say(self, line: str) -> None:
        if is_lead():
            self._say_line(line)

    def _none_readable(self) -> RunError:
        reasons = "; ".join(f"tokens-{tokens}: {why}" for tokens, why in sorted(self._damaged.items(), reverse=True))
        return RunError(
            f"none of the checkpoints in {self.directory} can be read ({reasons}); bring one back from a copy, or move "
            "the folder away to start from zero"
        )

    def _report_damage(self, tokens: int, why: str) -> None:
        if self._damaged.get(tokens) != why:
            self._say(f"checkpoint {self._path(tokens)} is damaged: {why}")
        self._damaged[tokens] = why

    def _read_body(self, tokens: int) -> dict[str, Any] | None:
        """What `save` wrote beside the arrays, read by the lead process for all; None, said aloud, if damaged."""
        answer: dict[str, Any] = {}
        if is_lead():
            try:
                with _context():
                    metadata = ocp.metadata(self._path(tokens), checkpointable_name=_STATE).custom_metadata
                if not isinstance(metadata, dict) or record_digest(metadata.get("body")) != metadata.get("sha256"):
                    answer = {"damaged": "its record is missing or differs from its checksum"}
                else:
                    answer = {"body": metadata["body"]}
            except UNREADABLE as error:
                answer = {"machine" if machine_at_fault(error) else "damaged": one_line(error)}
            bury_failed_tasks()
        answer = json.loads(from_lead(json.dumps(answer)))
        if "machine" in answer:
            raise RunError(f"cannot read checkpoint {self._path(tokens)}: {answer['machine']}")
        if "damaged" in answer:
            self._report_damage(tokens, answer["damaged"])
            return None
        body: dict[str, Any] = answer["body"]
        if body["format"] != FORMAT:
            raise UserError(
                f"checkpoint {self._path(tokens)} has format {body['format']}, this version of gpt3_jax reads "
                f"{FORMAT}; use the version that wrote it"
            )
        return body

    def _load(
        self, tokens: int, wanted: Mapping[str, Any], saved: Mapping[str, Any], *, partial: bool
    ) -> dict[str, jax.Array] | None:
        """The arrays of one checkpoint, checked; None, said aloud, if they are damaged."""
        arrays: dict[str, jax.Array] = {}
        why = machine = ""
        try:
            with jax.transfer_guard("allow"), _context(partial=partial, alone=True):
                arrays = ocp.load_checkpointables(self._path(tokens), {_STATE: _with_shardings(wanted)})[_STATE]
        except UNREADABLE as error:
            why = one_line(error)
            machine = why if machine_at_fault(error) else ""
        if why:
            bury_failed_tasks()
        # The processes read on their own and agree here: a process that met damage must not leave the others waiting.
        if not everywhere(not machine):
            raise RunError(f"cannot read checkpoint {self._path(tokens)}: {machine or 'another process failed'}")
        if not everywhere(not why):
            self._report_damage(tokens, why or "another process could not read it")
            return None
        sums = array_checksums(arrays)
        wrong = [name for name in wanted if sums[name] != saved[name]["checksum"]]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            self._report_damage(tokens, f"the checksum of {wrong[0]}{more} differs from when it was saved")
            return None
        return arrays


class CheckpointStore(CheckpointReader):
    """The checkpoints of a run: reads them as `CheckpointReader` does, and writes and retires them."""

    def __init__(
        self, directory: Path | str, *, keep_last: int, keep_every_tokens: int, say: Callable[[str], None]
    ) -> None:
        """Makes the folder. Keeps the newest `keep_last` checkpoints and, for good, the first one at or after each
        multiple of `keep_every_tokens` tokens (0: none). Raises RunError when the folder cannot be made."""
        super().__init__(directory, say=say)
        self._keep_last = keep_last
        self._keep_every = keep_every_tokens
        self._pending: tuple[int, ocp.AsyncResponse[None]] | None = None
        why = ""
        if is_lead():
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                why = one_line(error)
        if why := from_lead(why):
            raise RunError(f"cannot make the checkpoint folder {self.directory}: {why}")

    def save(self, tokens: int, step: int, state: Any, record: dict[str, Any], *, wait: bool = False) -> None:
        """Saves `state`, a tree of `jax.Array`, as the checkpoint at `tokens`; returns once it is copied to the host.

        The caller may donate `state` at once. `record` is any JSON. Nothing is done when this store has already
        saved or restored the checkpoint at `tokens`. Waits for the save before, whose failure is raised here.

        Raises RunError when a save fails, or when `tokens` is taken by a checkpoint that this run does not know.
        """
        self._finish()
        if tokens in self._whole:
            return
        self._make_room(tokens)
        leaves = named_leaves(state)
        try:
            with jax.transfer_guard("allow"), _context():
                sums = array_checksums(leaves)
                body = {
                    "format": FORMAT,
                    "step": step,
                    "tokens": tokens,
                    "record": record,
                    "leaves": {name: {**describe(leaf), "checksum": sums[name]} for name, leaf in leaves.items()},
                }
                body = json.loads(json.dumps(body))  # tuples become lists, as they will when read back
                response = ocp.save_checkpointables_async(
                    self._path(tokens), {_STATE: leaves}, custom_metadata={"body": body, "sha256": record_digest(body)}
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise self._save_error(tokens, error) from error
        self._pending = (tokens, response)
        if wait:
            self.wait()

    def check(self) -> None:
        """Raises the RunError of a background save that has failed; never waits. For every step of the loop."""
        self._finish(timeout=0)

    def wait(self) -> None:
        """Waits for the background save and retires old checkpoints. Raises RunError when the save failed."""
        self._finish()

    def pending(self) -> int | None:
        """Tokens of the save that is under way, or None."""
        return self._pending[0] if self._pending else None

    def last_good(self) -> int | None:
        """Tokens of the newest checkpoint that this store has itself restored, or saved to the end."""
        return max(self._whole, default=None)

    def close(self) -> None:
        """The same as `wait`, for the end of a run."""
        self._finish()

    def _finish(self, timeout: float | None = None) -> None:
        if self._pending is None:
            return
        tokens, response = self._pending
        try:
            response.result(timeout=timeout)
        except (OSError, RuntimeError, ValueError) as error:
            # Still running. A network disk's ETIMEDOUT is a TimeoutError too, but of a save that has failed.
            if timeout is not None and isinstance(error, TimeoutError) and error.errno is None:
                return
            self._pending = None
            raise self._save_error(tokens, error) from error
        self._pending = None
        self._whole.add(tokens)
        if is_lead():
            try:
                self._retire()
            except OSError as error:  # too many checkpoints are no reason to end a run
                self._say(f"could not look for old checkpoints in {self.directory}: {one_line(error)}")

    def _save_error(self, tokens: int, error: Exception) -> RunError:
        """The line for a failed save; removes its remains, which on a full disk are what fills it."""
        why = one_line(error)
        if disk_full(error):
            why = f"the disk is full ({why})"
        last = self.last_good()
        good = "there is no good checkpoint yet" if last is None else f"the last good one is {self._path(last)}"
        with contextlib.suppress(OSError):  # where even the folder cannot be read, `why` says so
            self._remove_remains()
        return RunError(f"could not save checkpoint {self._path(tokens)}: {why}; {good}")

    def _make_room(self, tokens: int) -> None:
        """Moves damaged checkpoints aside and removes what earlier runs left unfinished, before the first save."""
        why = ""
        if is_lead():
            try:
                present = self._list()
                for damaged in sorted(self._damaged.keys() & set(present)):
                    aside = self._free_name(f"damaged-tokens-{damaged}")
                    self._path(damaged).rename(aside)
                    self._say(f"moved damaged checkpoint {self._path(damaged)} to {aside}")
                self._remove_remains()
                if tokens in present and tokens not in self._damaged:
                    why = "a checkpoint that this run did not restore is in its place; move it away"
            except OSError as error:
                why = one_line(error)
        if why := from_lead(why):
            raise RunError(f"could not save checkpoint {self._path(tokens)}: {why}")
        self._damaged.clear()

    def _free_name(self, name: str) -> epath.Path:
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
        """Deletes the checkpoints that are neither among the newest nor the first of their `keep_every_tokens`."""
        tokens = sorted(self._list())
        keep = set(tokens[-self._keep_last :])
        if self._keep_every:
            first: dict[int, int] = {}
            for t in tokens:
                first.setdefault(t // self._keep_every, t)
            keep |= {t for multiple, t in first.items() if multiple > 0}
        for t in tokens:
            if t not in keep:
                # Deletion is not atomic and a rename is: what was renamed can no longer be taken for a checkpoint.
                gone = self._free_name(f"deleting-tokens-{t}")
                try:
                    self._path(t).rename(gone)
                except OSError as error:
                    self._say(f"could not delete old checkpoint {self._path(t)}: {one_line(error)}")
                    continue
                self._remove(gone)

    def _remove(self, path: epath.Path) -> None:
        try:
            path.rmtree()
        except OSError as error:
            self._say(f"could not delete {path}: {one_line(error)}")


def _context(*, partial: bool = False, alone: bool = False) -> ocp.Context:
    """Orbax's options. `alone`: this process reads without waiting for the others at Orbax's barriers."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # 4 to 6 times the time, for 7 % of the size
    context.asynchronous.timeout_secs = _SAVE_TIMEOUT_S
    context.pytree.loading.partial_load = partial
    if alone and jax.process_count() > 1:
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _with_shardings(wanted: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)
        for name, leaf in wanted.items()
    }
