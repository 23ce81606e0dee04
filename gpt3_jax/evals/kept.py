"""Answers kept on disk, so that an interrupted evaluation goes on where it stopped.

``answers.jsonl`` holds one answer a line, appended as it comes: ``{"key": ..., "answer": {...}}``. The key is the
sha256 of the request and of all else that the answer depends on: the weights, the tokenizer, the engine's settings. A
line that a kill cut short is removed when the file is opened again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError
from gpt3_jax.evals.requests import Answer, Completed, Request, Score, TextScore

FILE = "answers.jsonl"
_KINDS: Mapping[str, type[Answer]] = {kind.__name__: kind for kind in (Score, TextScore, Completed)}


class KeptAnswers:
    """The answers in a folder, open for more. A context manager.

    Args:
        folder: exists; `FILE` is made in it.
        depends_on: what answers depend on beside the request: weights', tokenizer's and engine's fingerprints.

    Raises:
        RunError: the file cannot be read or written.
    """

    def __init__(self, folder: Path, depends_on: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self._base = json.dumps(depends_on, sort_keys=True)
        self._file: BinaryIO | None = None
        self._known: dict[str, Answer] = {}

    def __enter__(self) -> KeptAnswers:
        try:
            file = self._file = open(self._path, "a+b")
            file.seek(0)
            whole = 0
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._read(line, number)
            file.truncate(whole)
        except OSError as error:
            raise self._failed(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, request: Request) -> Answer | None:
        """The kept answer to a request; None if there is none."""
        return self._known.get(self.key(request))

    def add(self, request: Request, answer: Answer) -> None:
        """Keeps an answer. It is in the system's hands when this returns, so a kill of the process does not lose it."""
        key = self.key(request)
        fields = {"kind": type(answer).__name__, **dataclasses.asdict(answer)}
        line = json.dumps({"key": key, "answer": fields}, separators=(",", ":")).encode() + b"\n"
        assert self._file is not None
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None
        self._known[key] = answer

    def key(self, request: Request) -> str:
        """sha256 over the request and what else the answer depends on."""
        asked = json.dumps([type(request).__name__, dataclasses.asdict(request)], sort_keys=True)
        return hashlib.sha256(f"{self._base}\n{asked}".encode()).hexdigest()

    def _read(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            fields = row["answer"]
            kind: Any = _KINDS[fields.pop("kind")]
            answer = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
            self._known[str(row["key"])] = answer
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning(f"{self._path}, line {number} is damaged; its request is answered again")

    def _failed(self, error: OSError) -> RunError:
        return RunError(
            f"cannot keep answers in {self._path}: {error.strerror or error}; free some space, or choose another --out"
        )
