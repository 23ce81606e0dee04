"""Answers kept on disk, so that an interrupted evaluation goes on where it stopped.

``answers.jsonl`` holds one answer a line, appended as it comes: ``{"key": ..., "answer": {...}}``. The key is the
sha256 of the request and of all else that the answer depends on (`Subject.depends_on`). A line that a kill cut short
is removed when the file is opened again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from gpt3_jax.cluster.agreement import everywhere, from_lead, is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError
from gpt3_jax.evals.requests import Answer, Completed, Request, Score, TextScore, WindowScore

FILE = "answers.jsonl"
_KINDS: Mapping[str, type[Answer]] = {kind.__name__: kind for kind in (Score, TextScore, WindowScore, Completed)}


class KeptAnswers:
    """The answers in a folder, open for more. A context manager, to be entered within `written.alone_in` the folder.

    In a multi-process run all processes read the file, and the lead process alone appends.

    Args:
        folder: exists; `FILE` is made in it. Shared by all processes.
        depends_on: what answers depend on beside the request, such as fingerprints of weights and tokenizer.

    Raises:
        RunError: the file cannot be read or written, or the processes do not see the same file.
    """

    def __init__(self, folder: Path, depends_on: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self._base = json.dumps(depends_on, sort_keys=True)
        self._file: BinaryIO | None = None
        self._known: dict[str, Answer] = {}

    def __enter__(self) -> KeptAnswers:
        # The lead process decides for all: the others must not wait for one that has stopped.
        failed = from_lead(self._open() if is_lead() else "")
        if failed:
            raise _failed(self._path, failed)
        if not is_lead():
            with contextlib.suppress(OSError), open(self._path, "rb") as file:
                self._read_all(file)
        digest = hashlib.sha256("".join(sorted(self._known)).encode()).hexdigest()
        if not everywhere(digest == from_lead(digest)):
            raise RunError(f"the processes do not see the same {self._path}; put --out on a file system that all share")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if error is not None and self._file is not None and self._known:
            log.info(f"{len(self._known):,} answers are kept in {self._path}; the same command goes on from there")

    def get(self, request: Request) -> Answer | None:
        """The kept answer to a request; None if there is none."""
        return self._known.get(self.key(request))

    def add(self, request: Request, answer: Answer) -> None:
        """Keeps an answer. It is in the system's hands when this returns, so a kill of the process does not lose it."""
        key = self.key(request)
        fields = {"kind": type(answer).__name__, **dataclasses.asdict(answer)}
        line = json.dumps({"key": key, "answer": fields}, separators=(",", ":")).encode() + b"\n"
        self._known[key] = answer
        if self._file is None:
            return  # the lead process writes
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise _failed(self._path, error.strerror or str(error)) from None

    def key(self, request: Request) -> str:
        """sha256 over the request and what else the answer depends on."""
        asked = json.dumps([type(request).__name__, dataclasses.asdict(request)], sort_keys=True)
        return hashlib.sha256(f"{self._base}\n{asked}".encode()).hexdigest()

    def _open(self) -> str:
        """In the lead process: reads and repairs the file. Returns why that failed, or nothing."""
        try:
            file = self._file = open(self._path, "a+b")  # noqa: SIM115
            file.seek(0)
            file.truncate(self._read_all(file))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _read_all(self, file: BinaryIO) -> int:
        """Reads all lines that are whole, and returns their bytes."""
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self._read(line, number)
        return whole

    def _read(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            fields = row["answer"]
            kind: Any = _KINDS[fields.pop("kind")]
            answer = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
            self._known[str(row["key"])] = answer
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning(f"{self._path}, line {number} is damaged; its request is answered again")


def _failed(path: Path, why: str) -> RunError:
    return RunError(f"cannot keep answers in {path}: {why}; free some space, or choose another --out")
