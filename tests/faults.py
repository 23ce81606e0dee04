"""Makes the system fail: a declared table of places where commands meet it, and a hook that raises there.

Python tells its audit hooks of each file that it opens, each folder that it makes or lists, each rename and removal,
before it does so; an exception from the hook takes the place of the system's answer. `python tests/faults.py` prints
the table.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

EVENTS = {
    "open": "open", "os.mkdir": "mkdir", "os.rename": "rename", "os.listdir": "list", "os.scandir": "list",
    "os.remove": "remove", "os.rmdir": "remove",
}  # fmt: skip
"""Audit events, and what they are called in the table. Python opens for reading and for writing with one event."""

Place = tuple[str, str]
"""What is done, and to which file: its path inside the test's folder, numbers as N and random parts as *."""

CHECKPOINT = "run/checkpoints/tokens-N"
SAVING = "checkpoints/tokens-N.orbax-checkpoint-tmp"
_SHARDS: dict[Place, str] = {
    ("open to read", "tokens/index.json"): "the shards' index",
    ("open to read", "tokens/tokens-N.bin"): "the shards",
}
_DOCUMENTS: dict[Place, str] = {("open to read", "tokens/documents.bin"): "where documents end"}
_TRAINED: dict[Place, str] = {("list", "run"): "the run folder"}
_RUN: dict[Place, str] = {
    ("list", "run/checkpoints"): "which checkpoints there are",
    ("list", CHECKPOINT): "a checkpoint",
    ("list", f"{CHECKPOINT}/*"): "a checkpoint's folders",
    ("open to read", f"{CHECKPOINT}/*"): "a checkpoint's files",
}


def _saving(run: str) -> dict[Place, str]:
    return {
        ("mkdir", f"{run}/{SAVING}"): "a checkpoint that is written",
        ("mkdir", f"{run}/{SAVING}/*"): "its folders",
        ("list", f"{run}/{SAVING}/*"): "the same, looked at again",
        ("open to read", f"{run}/{SAVING}/*"): "its files, looked at again",
        ("open to write", f"{run}/{SAVING}/*"): "its files",
        ("rename", f"{run}/{SAVING}"): "the checkpoint, put in its place",
    }


STOPS: dict[str, dict[Place, str]] = {
    "train": {
        ("open to read", "run.yaml"): "the configuration",
        **_SHARDS,
        **_DOCUMENTS,
        ("open to write", "run/run.lock"): "the lock on the run folder",
        **_RUN,
        ("open to write", "run/config.yaml.tmp"): "the run's own configuration",
        ("rename", "run/config.yaml.tmp"): "the same, put in its place",
        ("open to read", "run/metrics.jsonl"): "metrics of the run so far",
        ("open to write", "run/metrics.jsonl"): "metrics of the run from here",
        ("open to write", "run/metrics.tmp"): "metrics without what is computed again",
        ("rename", "run/metrics.tmp"): "the same, put in its place",
        ("open to write", "run/tensorboard/events.*"): "TensorBoard events",
        **_saving("run"),
    },
    "generate": {**_TRAINED, **_RUN},
    "evaluate": {
        **_TRAINED,
        **_RUN,
        ("open to read", "pairs.jsonl"): "the task",
        ("mkdir", "evals"): "the folder of results",
        ("open to write", "evals/items.partial"): "what each item was asked and answered",
        ("rename", "evals/items.partial"): "the same, put in its place",
        ("open to write", "evals/answers.jsonl"): "answers as they come",
        ("open to write", "evals/results.partial"): "the results",
        ("rename", "evals/results.partial"): "the same, put in its place",
        ("remove", "evals/shots.png"): "a picture of earlier results",
        ("remove", "evals/size.png"): "the same",
        ("remove", "evals/tokens.png"): "the same",
    },
    "data languages": {
        ("open to read", "book.txt"): "the text",
        ("mkdir", "languages"): "the folder of the three files",
        **{
            (what, f"languages/languages_by_{kind}_count.partial"): "the counts"
            for kind in ("document", "word", "character")
            for what in ("open to write", "rename")
        },
    },
    "contamination": {
        ("open to read", "book.txt"): "the training text",
        ("open to read", "pairs.jsonl"): "the task",
        ("mkdir", "found"): "the folder of results",
        ("open to write", "found/hits.partial"): "what the text holds",
        ("rename", "found/hits.partial"): "the same, put in its place",
        ("open to write", "found/contamination.partial"): "the results",
        ("rename", "found/contamination.partial"): "the same, put in its place",
    },
    "memorisation": {
        ("open to read", "book.txt"): "the training text",
        ("open to read", "sample.txt"): "the sample",
        ("mkdir", "matches"): "the folder of results",
        ("open to write", "matches/memorisation.partial"): "the results",
        ("rename", "matches/memorisation.partial"): "the same, put in its place",
    },
    "data tokenize": {
        ("open to read", "book.txt"): "the text",
        ("mkdir", "shards.partial"): "the folder of what is not complete",
        ("open to read", "shards.partial"): "the same, to put it on the disk",
        ("open to write", "shards.partial/documents.bin"): "where documents end",
        ("open to write", "shards.partial/tokens-N.bin"): "the shards",
        ("open to read", "shards.partial/documents.bin"): "the same two, read back",
        ("open to read", "shards.partial/tokens-N.bin"): "the same two, read back",
        ("open to write", "shards.partial/progress.json.new"): "where to go on",
        ("rename", "shards.partial/progress.json.new"): "the same, put in its place",
        ("open to write", "shards.partial/index.json.new"): "the index",
        ("rename", "shards.partial/index.json.new"): "the same, put in its place",
        ("open to read", "shards.partial/index.json"): "the index, read back",
        ("remove", "shards.partial/index.json"): "an index of an earlier attempt",
        ("rename", "shards.partial"): "all of it, put in its place",
        ("remove", "shards/progress.json"): "where to go on, no longer needed",
        ("open to read", "shards/index.json"): "the index, read back in its place",
        ("open to read", "shards/documents.bin"): "where documents end, the same",
        ("open to read", "shards/tokens-N.bin"): "the shards, the same",
    },
    "data inspect": {**_SHARDS, **_DOCUMENTS},
    "bench loader": {**_SHARDS, **_DOCUMENTS},
    "convert to-hf": {
        **_TRAINED,
        **_RUN,
        ("mkdir", ".hf2.*"): "the folder of what is not complete",
        ("open to write", ".hf2.*/config.json"): "the configuration",
        ("rename", ".hf2.*"): "all of it, put in its place",
    },
    "convert from-hf": {
        ("open to read", "hf/config.json"): "the configuration",
        ("list", "run2/checkpoints"): "what an earlier attempt left",
        ("mkdir", "run2"): "the run folder",
        ("mkdir", "run2/checkpoints"): "its checkpoints' folder",
        ("open to write", "run2/config.yaml.tmp"): "the run's configuration",
        ("rename", "run2/config.yaml.tmp"): "the same, put in its place",
        **_saving("run2"),
        ("list", "run2/checkpoints/tokens-N"): "the checkpoint, read back",
        ("list", "run2/checkpoints/tokens-N/*"): "its folders, read back",
        ("open to read", "run2/checkpoints/tokens-N/*"): "its files, read back",
    },
}
"""Places where a command ends with one line and exit code 1 or 2, by command. `plan` and `report` meet the system in
the configuration alone (as `train` does); what they keep of earlier plans is a cache."""

NO_REASON = {
    ("train", ("list", f"run/{SAVING}/*")),
    ("convert from-hf", ("list", f"run2/{SAVING}/*")),
    ("convert from-hf", ("list", "run2/checkpoints/tokens-N/*")),
    ("convert from-hf", ("open to read", "run2/checkpoints/tokens-N/*")),
}
"""Orbax keeps the system's answer to itself: the line says what is then wrong with the checkpoint that was written."""

GOES_ON: dict[str, dict[Place, str]] = {
    "train": {
        ("mkdir", "run"): "is there already",
        ("mkdir", "run/checkpoints"): "is there already",
        ("mkdir", "run/tensorboard"): "is there already",
        ("remove", f"run/{SAVING}/*"): "files that only its writing needs",
        ("rename", CHECKPOINT): "an old checkpoint that is to go, with a message",
        ("open to read", "run/checkpoints/deleting-tokens-N"): "the same, as it is deleted, with a message",
        ("remove", "run/checkpoints/deleting-tokens-N"): "the same, its folder, with a message",
    },
    "evaluate": {
        ("open to read", "evals"): "the folder, to lock it: with a warning where it cannot be",
        ("open to read", "evals/results.json"): "whose results are there already, if any",
    },
    "data languages": {("open to read", "languages"): "the folder, to lock it: with a warning where it cannot be"},
    "contamination": {("open to read", "found"): "the folder, to lock it: with a warning where it cannot be"},
    "memorisation": {("open to read", "matches"): "the folder, to lock it: with a warning where it cannot be"},
    "data tokenize": {("list", "shards.partial"): "what an earlier attempt left"},
    "convert from-hf": {
        ("remove", f"run2/{SAVING}/*"): "files that only its writing needs",
    },
}
"""Places that a command does without."""

LATE = {
    ("train", place) for place in STOPS["train"] if place[1].startswith(("tokens/tokens", "run/metrics", "run/tens"))
} | {("train", place) for place in [*_saving("run"), *GOES_ON["train"]]}  # fmt: skip
"""Met only after compilation: seconds each."""


class Injector:
    """The process's one audit hook; it cannot be taken out again, so it does nothing unless told."""

    def __init__(self) -> None:
        self._folder = ""
        self._place: Place | None = None
        self._number = 0
        self.seen: set[Place] = set()
        self.raised = 0
        sys.addaudithook(self._on_event)

    @contextlib.contextmanager
    def watch(self, folder: Path, place: Place | None = None, number: int = errno.EIO) -> Iterator[Injector]:
        """Notes the places below `folder`; at `place`, the system fails with `number`."""
        self._folder, self._place, self._number, self.seen, self.raised = str(folder), place, number, set(), 0
        try:
            yield self
        finally:
            self._folder = ""

    def _on_event(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._folder or event not in EVENTS:
            return
        path = arguments[0]
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        path = os.fsdecode(path)  # a relative one is relative to what only the caller knows, as in shutil.rmtree
        if not path.startswith(self._folder + os.sep):
            return
        what = EVENTS[event]
        if what == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            what += " to write" if flags & (os.O_WRONLY | os.O_RDWR) else " to read"
        place = what, normal(path[len(self._folder) + 1 :])
        self.seen.add(place)
        if place == self._place:
            self.raised += 1
            raise OSError(self._number, os.strerror(self._number), path)


def normal(path: str) -> str:
    """The path with what differs from run to run left out; a checkpoint's inside, which is Orbax's, as one."""
    path = re.sub(r"(bench-|^\.\w+\.)\w{8}(?=/|$)", r"\1*", path)
    path = re.sub(r"(?<=[-/])\d+(?=[./]|$)", "N", path)
    path = re.sub(r"(checkpoints/tokens-N(?:\.orbax-checkpoint-tmp)?)/.*", r"\1/*", path)
    return re.sub(r"/events\..*", "/events.*", path)


def table(heading: Callable[[str], str] = str) -> str:
    """All places, as text."""
    rows = [("command", "the system fails to", "file", "what it is", "then")]
    for then, places in (("one line, exit code 1 or 2", STOPS), ("goes on", GOES_ON)):
        for command, of_command in places.items():
            rows += [(command, what, path, meaning, then) for (what, path), meaning in of_command.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    print(table())
