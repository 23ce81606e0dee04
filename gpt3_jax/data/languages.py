"""Counts documents, words and characters of a corpus by language, as the paper publishes them of its own.

The languages are found by CLD2 (optional: pycld2), whose codes the published files have, such as ``zh-Hant``,
``iw`` and ``xx-Goth``. One process reads, the others detect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.data.documents import BadDocument, Block, Cursor, Options, blocks, find_inputs
from gpt3_jax.data.files import is_folder
from gpt3_jax.data.in_order import in_order, pool
from gpt3_jax.data.records import documents
from gpt3_jax.data.shards import ShardSource
from gpt3_jax.data.tokenize import BLOCK_BYTES
from gpt3_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt3_jax.data.writer import LeftOut
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.quantities import grid

UNKNOWN = "unknown"
"""The language of a document in which the detector finds none reliably."""
LOOK_AT = 20_000
_KILLED = "a process that detects languages was killed, perhaps for lack of memory; run it with fewer --workers"
_SHARD_TOKENS = 2**20
KINDS = ("document", "word", "character")
PAPER = {"en": (93.69, 92.65, 92.10), "fr": (1.02, 1.82, 1.78), "de": (1.20, 1.47, 1.68), "es": (0.51, 0.77, 0.79)}
"""The paper's corpus: per cent of its documents, words and characters."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Documents first .. end - 1 of a folder of token shards."""

    path: str
    first: int
    end: int
    bytes_read: int


@dataclasses.dataclass
class Statistics:
    """Documents, words and characters by language."""

    documents: Counter[str] = dataclasses.field(default_factory=Counter)
    words: Counter[str] = dataclasses.field(default_factory=Counter)
    """Separated by white space, as the paper counts them: few in a language written without it."""
    characters: Counter[str] = dataclasses.field(default_factory=Counter)
    """Unicode code points."""
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)

    def add(self, text: str, language: str) -> None:
        self.documents[language] += 1
        self.words[language] += len(text.split())
        self.characters[language] += len(text)

    def merge(self, other: Statistics) -> None:
        self.documents += other.documents
        self.words += other.words
        self.characters += other.characters
        self.left_out = self.left_out + other.left_out

    def of(self, kind: str) -> Counter[str]:
        """By kind of `KINDS`."""
        return {"document": self.documents, "word": self.words, "character": self.characters}[kind]

    def csv(self, kind: str) -> str:
        """One of the three files in the form of the paper's: language, number, per cent with five places."""
        counts = self.of(kind)
        total = sum(counts.values())
        lines = [f"language,number of {kind}s,percentage of total {kind}s"]
        for language in sorted(self.documents, key=lambda name: (-counts[name], name)):
            share = 100 * counts[language] / total if total else 0.0
            lines.append(f"{language},{counts[language]},{share:.5f}%")
        return "\n".join(lines) + "\n"

    def table(self, most: int = 20) -> str:
        """The most frequent languages by documents, in per cent, beside the paper's first four."""
        totals = [sum(self.of(kind).values()) for kind in KINDS]
        order = sorted(self.documents, key=lambda name: (-self.documents[name], name))
        rows = []
        for name in order[:most]:
            shares = [100 * self.of(kind)[name] / max(1, total) for kind, total in zip(KINDS, totals, strict=True)]
            paper = [f"{share:.2f}" for share in PAPER[name]] if name in PAPER else ["–"] * len(KINDS)
            ours = [f"{share:.2f}" for share in shares]
            rows.append(
                [name, f"{self.documents[name]:,}", *(cell for pair in zip(ours, paper, strict=True) for cell in pair)]
            )
        head = ["language", "count", *(cell for kind in KINDS for cell in (f"{kind}s, %", "paper"))]
        documents, words, characters = totals
        more = f", {len(order) - most} more not shown" if len(order) > most else ""
        return grid(rows, head) + f"\n  {documents:,} documents, {words:,} words, {characters:,} characters{more}"

    def as_data(self) -> dict[str, Any]:
        order = sorted(self.documents, key=lambda name: (-self.documents[name], name))
        return {
            "languages": {name: {f"{kind}s": self.of(kind)[name] for kind in KINDS} for name in order},
            "total": {f"{kind}s": sum(self.of(kind).values()) for kind in KINDS},
            "left_out": dict(self.left_out.counts),
        }


@dataclasses.dataclass(frozen=True)
class Progress:
    """Of the work so far. The bytes are those of the files on disk."""

    bytes_read: int
    bytes_total: int
    documents: int


def count_languages(
    paths: Sequence[str],
    *,
    options: Options | None = None,
    look_at: int = LOOK_AT,
    tokenizer: str | None = None,
    workers: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> Statistics:
    """Reads a corpus and counts it by language. Each document has one language, the one that most of it is in.

    Args:
      paths: files or globs of text, JSONL or Parquet, and folders of token shards.
      options: how documents are found in the files.
      look_at: characters of a document that the detector sees, taken in equal parts from its beginning, middle and
        end; 0: all.
      tokenizer: decodes shards; None: the one that they record.
      workers: processes that detect; 1 stays in this process.
      on_progress: called after each block.

    Raises:
      UserError: pycld2 is not installed, or an input cannot be read as configured.
      RunError: an input is damaged, or a worker was killed.
    """
    for name, value, least in (("workers", workers, 1), ("look_at", look_at, 0)):
        if value < least:
            raise UserError(f"{name} is {value}; expected at least {least}")
    detector()  # before anything is read
    options = options or Options()
    folders = [path for path in paths if is_folder(path)]
    if twice := [path for path, n in Counter(map(os.path.realpath, folders)).items() if n > 1]:
        raise UserError(f"{twice[0]} is given twice; its documents would be counted twice")
    files = find_inputs([path for path in paths if path not in folders], options.kind)
    sources = {path: ShardSource(path) for path in folders}
    names = {path: _tokenizer_name(source, tokenizer) for path, source in sources.items()}
    size = sum(file.size for file in files)
    total = size + sum(_bytes(source, source.n_tokens) for source in sources.values())

    def jobs() -> Iterator[tuple[int, Block | Span]]:
        """Each with the bytes read when it is done."""
        for block in blocks(files, options, Cursor(), BLOCK_BYTES):
            yield block.bytes_read, block
        before = size
        for path, source in sources.items():
            for span in _spans(path, source, before):
                yield span.bytes_read, span
            before += _bytes(source, source.n_tokens)

    how = _How(options, look_at, names)
    found = Statistics()
    with pool(workers, _start_worker, (how,)) as processes:
        work = functools.partial(_count, how=how) if processes is None else _count_in_worker
        for bytes_read, part in in_order(jobs(), processes, work, 3 * workers, _KILLED):
            found.merge(part)
            if on_progress:
                on_progress(Progress(bytes_read, total, sum(found.documents.values())))
    if not found.documents:
        raise UserError(f"{', '.join(paths)}: there is no document to count; empty ones are left out")
    return found


@functools.cache
def detector() -> Callable[[str], str]:
    """Gives the code of a text's language, or `UNKNOWN`. Raises UserError if pycld2 is not installed."""
    try:
        import pycld2
    except ImportError:
        raise UserError(
            "pycld2, which finds languages, is not installed; pip install -c constraints.txt -e '.[languages]'"
        ) from None

    def detect(text: str) -> str:
        try:
            reliable, _, found = pycld2.detect(text.encode(errors="replace"))
        except pycld2.error:  # it refuses control characters and code points that are none
            printable = "".join(c if c.isprintable() else " " for c in text)
            try:
                reliable, _, found = pycld2.detect(printable.encode(errors="replace"))
            except pycld2.error:
                return UNKNOWN
        code = str(found[0][1])
        return code if reliable and code != "un" else UNKNOWN

    return detect


def part_of(text: str, look_at: int) -> str:
    """What the detector sees of a text: all of it, or thirds of `look_at` from the beginning, middle and end."""
    if not look_at or len(text) <= look_at:
        return text
    third = max(1, look_at // 3)
    middle = (len(text) - third) // 2
    return "\n".join((text[:third], text[middle : middle + third], text[-third:]))


# -- work --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _How:
    """What a worker needs to know."""

    options: Options
    look_at: int
    tokenizers: dict[str, str]
    """By folder of shards."""


def _count(work: Block | Span, how: _How) -> Statistics:
    found = Statistics()
    detect = detector()
    for text in _block_texts(work, how, found) if isinstance(work, Block) else _span_texts(work, how):
        if text.strip():
            found.add(text, detect(part_of(text, how.look_at)))
        else:
            found.left_out = found.left_out.with_one("empty")
    return found


def _block_texts(block: Block, how: _How, found: Statistics) -> Iterator[str]:
    for document in documents(block, how.options):
        try:
            text = document.text()
        except BadDocument as error:
            if how.options.on_error == "stop":
                raise
            found.left_out = found.left_out.with_one(error.reason, str(error))
            continue
        yield text


def _span_texts(span: Span, how: _How) -> Iterator[str]:
    source, tokenizer = _opened(span.path, how.tokenizers[span.path])
    for document in range(span.first, span.end):
        start, end = _bounds(source, document)
        ids = source.read(start, end - start)
        yield tokenizer.decode(ids[ids != tokenizer.eot])


@functools.cache
def _opened(path: str, tokenizer: str) -> tuple[ShardSource, Tokenizer]:
    return ShardSource(path), load_tokenizer(tokenizer)


def _bounds(source: ShardSource, document: int) -> tuple[int, int]:
    last = document + 1 == source.index.n_documents
    return source.document_start(document), source.n_tokens if last else source.document_start(document + 1)


def _spans(path: str, source: ShardSource, before: int) -> Iterator[Span]:
    """Whole documents, about `_SHARD_TOKENS` at a time."""
    first, start = 0, 0
    while first < source.index.n_documents:
        last = source.document_at(min(start + _SHARD_TOKENS, source.n_tokens) - 1)
        assert last is not None  # shards record their documents
        end = max(first, last) + 1
        start = _bounds(source, end - 1)[1]
        yield Span(path, first, end, before + _bytes(source, start))
        first = end


def _bytes(source: ShardSource, tokens: int) -> int:
    return tokens * source.dtype.itemsize


def _tokenizer_name(source: ShardSource, given: str | None) -> str:
    name = given or source.index.tokenizer.name
    if load_tokenizer(name).fingerprint != source.tokenizer_fingerprint:
        hint = "leave --tokenizer out, because token shards record theirs" if given else "give it with --tokenizer"
        raise UserError(f"tokenizer {name!r} is not the one that made {source.path}; {hint}")
    return name


_worker: _How


def _start_worker(how: _How) -> None:
    global _worker
    _worker = how


def _count_in_worker(work: Block | Span) -> Statistics:
    return _count(work, _worker)


def write_csvs(found: Statistics, folder: str | Path) -> list[Path]:
    """Writes the three files, named as the paper's. Raises RunError."""
    paths = [Path(folder) / f"languages_by_{kind}_count.csv" for kind in KINDS]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, kind in zip(paths, KINDS, strict=True):
            path.with_suffix(".partial").write_text(found.csv(kind), encoding="utf-8")
        for path in paths:  # all three are written by now
            path.with_suffix(".partial").replace(path)
    except OSError as error:
        for path in paths:
            with contextlib.suppress(OSError):
                path.with_suffix(".partial").unlink()
        raise RunError(f"cannot write into {folder}: {error.strerror or error}; choose another --out") from None
    return paths
