"""Looks for wanted N-grams in a corpus and keeps what it finds in a file, so that it need not look again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError
from gpt3_jax.ngrams.corpus import Corpus, Place, Size
from gpt3_jax.ngrams.scan import Progress, Took, scan
from gpt3_jax.ngrams.tally import Counter, Tally
from gpt3_jax.ngrams.wanted import Wanted

HITS = "hits.npz"
SAVE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Looked:
    """What a corpus holds, and what it took to find out."""

    tally: Tally
    took: Took
    known: bool = False
    """Whether all is from an earlier run, and so is `took`."""


@dataclasses.dataclass
class _State:
    """What is kept."""

    tally: Tally
    took: Took = dataclasses.field(default_factory=Took)
    after: Place | None = dataclasses.field(default_factory=Place)
    """Where reading goes on; None: all is read."""


def look(
    corpus: Corpus,
    wanted: Sequence[Wanted],
    workers: int = 1,
    folder: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Looked:
    """Reads the corpus once and counts the wanted grams. With `folder`, what is found is kept in its `HITS`: every half
    a minute, so that the same call goes on after an interruption, and in the end, so that it returns at once.

    Args:
        wanted: grams of one rule.

    Raises:
        UserError: a document cannot be read as configured.
        RunError: a file is damaged or cannot be written, a process was killed.
    """
    fingerprint = hashlib.sha256("\n".join([corpus.fingerprint, *(each.fingerprint for each in wanted)]).encode())
    kept = _Kept(folder / HITS, fingerprint.hexdigest()) if folder else None
    state = (kept.read() if kept else None) or _State(Tally(sum(map(len, wanted))))
    known = state.after is None
    if known:
        log.info(f"{folder}: what the text holds is known from an earlier run; it is not read again")
    elif len(state.tally.documents) == 0:
        state.after = None  # nothing is looked for
    else:
        _read(corpus, wanted, workers, state, kept, on_progress)
    return Looked(state.tally, state.took, known)


def _read(
    corpus: Corpus,
    wanted: Sequence[Wanted],
    workers: int,
    state: _State,
    kept: _Kept | None,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    if state.after and state.after != Place():
        log.info(f"goes on after {state.took.size.documents:,} documents that an interrupted run has read")
    last = time.monotonic()
    try:
        for piece in scan(corpus, Counter(tuple(wanted)), workers, state.after, on_progress):
            state.tally.add(piece.file, piece.result)
            state.took.add(piece)
            now = time.monotonic()
            state.after, state.took.seconds, last = piece.after, state.took.seconds + now - last, now
            if kept and now - kept.written >= SAVE_SECONDS:
                kept.write(state)
        state.after = None
    finally:
        if kept:
            kept.write(state)


class _Kept:
    """The file of what was found."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self.written = time.monotonic()

    def read(self) -> _State | None:
        """What an earlier run of the same search found; None if there was none."""
        if not self._path.is_file():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                if about["fingerprint"] != self._fingerprint:
                    log.info(f"{self._path} is of other texts or settings; it is replaced")
                    return None
                after = about["after"] and Place(about["after"]["source"], tuple(about["after"]["at"]))
                tally = Tally.of({name: arrays[name] for name in ("documents", "occurrences", "places")})
                took = about["took"]
                return _State(tally, Took(Size(**took.pop("size")), **took), after)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise RunError(f"{self._path} is damaged ({type(error).__name__}); delete it, and start again") from None

    def write(self, state: _State) -> None:
        """Replaces the file."""
        about = {
            "fingerprint": self._fingerprint,
            "after": state.after and dataclasses.asdict(state.after),
            "took": dataclasses.asdict(state.took),
        }
        partial = self._path.with_suffix(".partial")
        try:
            with open(partial, "wb") as file:
                np.savez(file, allow_pickle=False, about=np.array(json.dumps(about)), **state.tally.arrays())
            partial.replace(self._path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(
                f"cannot write {self._path}: {error.strerror or error}; free some space, or choose another --out"
            ) from None
        self.written = time.monotonic()
