"""Reads the newest intact checkpoint of a folder and verifies its checksums.

This file and the store add what Orbax lacks: checksums of the array data, the fall-back from a damaged checkpoint to
the previous one, and the distinction between a damaged checkpoint and one that this machine cannot read.

On disk, a folder holds ``tokens-N`` (complete: Orbax renames it into place last), ``damaged-tokens-N`` (moved aside,
never deleted automatically), and remains of interrupted operations: ``*.orbax-checkpoint-tmp`` (saves), ``deleting-*``.
Arrays have global shapes and flat names (``params/token_embedding``), so any mesh, ZeRO stage or device count can read
them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from gpt3_jax.cluster.agreement import everywhere, from_lead, is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.train.checkpoint import arrays as on_disk
from gpt3_jax.train.checkpoint.integrity import array_checksums, named_leaves, record_digest, require_same_leaves
from gpt3_jax.train.checkpoint.storage_errors import (
    UNREADABLE,
    bury_failed_tasks,
    machine_at_fault,
    no_asyncio_log,
    one_line,
)

FORMAT = 1
"""Version of the metadata that `CheckpointStore.save` writes."""

_NAME = re.compile(r"tokens-(0|[1-9][0-9]*)")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and verified."""

    step: int
    tokens: int
    state: Any
    """The requested tree, with the requested shardings."""
    record: dict[str, Any]
    """The JSON given to `CheckpointStore.save`."""


class CheckpointReader:
    """Reads the checkpoints of a folder, newest first. Never writes to it.

    In a multi-process run, all processes make the same calls and read from a shared file system.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(os.path.abspath(directory))
        on_disk.require_own_name(self.directory)
        self._damaged: dict[int, str] = {}
        self._whole: set[int] = set()

    def checkpoints(self) -> list[int]:
        """Tokens of the checkpoints in the folder, ascending, intact or not. Raises RunError if the folder is
        unreadable."""
        return sorted(int(tokens) for tokens in self._from_folder(lambda: " ".join(map(str, self._list()))).split())

    def newest_record(self) -> tuple[int, dict[str, Any]] | None:
        """(tokens, record) of the newest checkpoint with intact metadata, without reading its arrays.

        None if the folder holds no checkpoint. Raises RunError if it holds some but none is readable.
        """
        found = self._found()
        for tokens in reversed(found):
            body = self._read_body(tokens)
            if body is not None:
                return tokens, body["record"]
        if found:
            raise self._none_readable()
        return None

    def restore(
        self,
        abstract_state: Any,
        *,
        only: str = "",
        tokens: int | None = None,
        each: Callable[[str, jax.Array], jax.Array] | None = None,
    ) -> Restored | None:
        """Restores the newest intact checkpoint as the given tree of `jax.ShapeDtypeStruct`; None if the folder has
        none.

        `only` names a field of the saved state (``"params"``). Then `abstract_state` is that field's tree, and only its
        arrays are read and verified. `tokens` selects one checkpoint, without a fall-back. Leaves without a sharding go
        to the first local device. Checksums are compared before anything is returned. If a checkpoint is damaged, it
        logs a warning and falls back to the previous one.

        `each` gets every array by its name, once it is verified, and returns what takes its place in the tree, such as
        the same in another dtype. The arrays are then read one after another, the largest first, so that devices hold
        what `each` has made and one array more. If it has kept something of a checkpoint that turns out to be damaged,
        it is called again with the same names.

        Raises UserError if the checkpoint's arrays differ from the requested ones in name, shape or dtype, RunError if
        checkpoints exist but none can be read.
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
            arrays = self._load(candidate, wanted, body["leaves"], partial=bool(only), each=each)
            if arrays is None:
                continue
            self._whole.add(candidate)
            if candidate != found[-1]:
                log.warning(f"falling back to the previous checkpoint: {self._path(candidate)}")
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
        """The lead process's view of the folder, sent to all. Raises RunError in all if it cannot read the folder."""
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

    def _children(self) -> list[Path]:
        try:
            return list(self.directory.iterdir()) if is_lead() else []
        except FileNotFoundError:
            return []

    def _list(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self._children())
        return [int(match[1]) for match in matches if match]

    def _path(self, tokens: int) -> Path:
        return self.directory / f"tokens-{tokens}"

    def _none_readable(self) -> RunError:
        reasons = "; ".join(f"tokens-{tokens}: {why}" for tokens, why in sorted(self._damaged.items(), reverse=True))
        return RunError(
            f"none of the checkpoints in {self.directory} can be read ({reasons}); restore one from a backup, or move "
            "the folder away to start from zero"
        )

    def _report_damage(self, tokens: int, why: str) -> None:
        if self._damaged.get(tokens) != why:
            log.warning(f"checkpoint {self._path(tokens)} is damaged: {why}")
        self._damaged[tokens] = why

    def _read_body(self, tokens: int) -> dict[str, Any] | None:
        """The metadata of a checkpoint, read by the lead process for all; None, with a warning, if it is damaged."""
        answer: dict[str, Any] = {}
        if is_lead():
            try:
                on_disk.require_files(self._path(tokens))
                metadata = on_disk.read_metadata(self._path(tokens))
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
        self,
        tokens: int,
        wanted: Mapping[str, Any],
        saved: Mapping[str, Any],
        *,
        partial: bool,
        each: Callable[[str, jax.Array], jax.Array] | None,
    ) -> dict[str, jax.Array] | None:
        """Loads and verifies the arrays of one checkpoint; None, with a warning, if they are damaged."""
        # Checked before loading: here an error is only raised, while Orbax's event loop also prints the errors of tasks
        # that it abandons. Either all processes load or none: Orbax numbers its barriers by a process's earlier
        # operations.
        answer: dict[str, str] = {}
        if is_lead():
            try:
                missing = on_disk.missing(self._path(tokens), {name: saved[name] for name in wanted}, whole=not partial)
                answer = {"damaged": missing} if missing else {}
            except UNREADABLE as error:
                answer = {"machine" if machine_at_fault(error) else "damaged": one_line(error)}
        answer = json.loads(from_lead(json.dumps(answer)))
        if "machine" in answer:
            raise RunError(f"cannot read checkpoint {self._path(tokens)}: {answer['machine']}")
        if "damaged" in answer:
            self._report_damage(tokens, answer["damaged"])
            return None
        if each is None:
            return self._read_arrays(tokens, wanted, saved, partial=partial)
        made: dict[str, jax.Array] = {}
        for name in sorted(wanted, key=lambda name: math.prod(wanted[name].shape), reverse=True):
            arrays = self._read_arrays(tokens, {name: wanted[name]}, saved, partial=True)
            if arrays is None:
                return None
            made[name] = each(name, arrays.pop(name))
        return made

    def _read_arrays(
        self, tokens: int, wanted: Mapping[str, Any], saved: Mapping[str, Any], *, partial: bool
    ) -> dict[str, jax.Array] | None:
        arrays: dict[str, jax.Array] = {}
        why = machine = ""
        try:
            with jax.transfer_guard("allow"), no_asyncio_log():
                arrays = on_disk.load(self._path(tokens), wanted, partial=partial)
        except UNREADABLE as error:
            why = one_line(error)
            machine = why if machine_at_fault(error) else ""
        if why:
            bury_failed_tasks()
        # The processes read on their own and agree here, so that one that met damage does not leave the others waiting.
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
