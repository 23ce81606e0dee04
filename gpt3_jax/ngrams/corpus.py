"""A corpus to look through: text, JSONL, Parquet (also compressed), token shards and files of token ids, cut into
pieces of whole documents that processes can read on their own."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import hashlib
import os
import random
from collections.abc import Iterator, Sequence

import numpy as np

from gpt3_jax.config import SourceConfig
from gpt3_jax.data.documents import BadDocument, Block, Cursor, Input, Options, blocks, find_inputs
from gpt3_jax.data.files import is_folder
from gpt3_jax.data.records import documents
from gpt3_jax.data.shards import ShardSource
from gpt3_jax.data.sources import TokenSource, open_source
from gpt3_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.ngrams.finder import Part

BLOCK_BYTES = 4 << 20
PIECE_TOKENS = 1 << 20
_READ_TOKENS = 1 << 18
_CHARACTERS = 6
"""Of text that are taken for a token, where its tokenizer is not known: more than it has on average."""
_TOKEN_FILES = (".bin", ".idx", ".npy")


@dataclasses.dataclass(frozen=True)
class Place:
    """A position between two pieces, from which reading can go on."""

    source: int = 0
    """Index into the corpus' sources."""
    at: tuple[int, ...] = ()
    """Within it: fields of a `Cursor`, or token and document; empty: the beginning."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Whole documents of one source."""

    file: int
    """Index into `Corpus.files`."""
    block: Block | None = None
    """Of a file of text."""
    tokens: tuple[int, int] = (0, 0)
    """Of token ids: the first and the one after the last."""
    document: int = 0
    """Number of the first document of `tokens`."""


@dataclasses.dataclass(frozen=True)
class Size:
    """What has been read."""

    documents: int = 0
    bytes: int = 0
    """Of text, as UTF-8."""
    left_out: int = 0
    """Documents that cannot be read."""

    def __add__(self, other: Size) -> Size:
        return Size(self.documents + other.documents, self.bytes + other.bytes, self.left_out + other.left_out)


class Corpus:
    """Files and folders to look through, in the order given.

    Args:
        paths: files and globs of text, folders of token shards, files of token ids (.bin, .npy, Megatron's).
        options: how documents are found in files of text.
        tokenizer: name of the tokenizer that wrote token ids; None: the one that token shards record.

    Raises:
        UserError: nothing is there, a file cannot be read as configured, a tokenizer is missing or another one.
        RunError: a file is damaged.
    """

    def __init__(self, paths: Sequence[str], options: Options | None = None, tokenizer: str | None = None) -> None:
        if not paths:
            raise UserError("there is no text to look through; name files, globs or folders of token shards")
        self.options = options or Options()
        self.tokenizer = tokenizer
        self._sources: list[tuple[int, tuple[Input, ...] | TokenSource]] = []
        self.files: list[str] = []
        self._kinds: list[str] = []
        names: dict[str, str] = {}
        for path in paths:
            if is_folder(path) or (path.endswith(_TOKEN_FILES) and self.options.kind is None):
                if names.setdefault(os.path.realpath(path), path) != path or path in self.files:
                    raise UserError(f"{path} is given twice; its documents would be counted twice")
                self._sources.append((len(self.files), open_source(SourceConfig(path))))
                self.files.append(path)
                self._kinds.append("document")
        patterns = [path for path in paths if path not in self.files]
        if patterns:
            inputs = find_inputs(patterns, self.options.kind)
            self._sources.append((len(self.files), tuple(inputs)))
            self.files += [each.path for each in inputs]
            names_of = {"jsonl": "line", "parquet": "row", "text": "text" if self.options.split_on else ""}
            self._kinds += [names_of[each.kind] for each in inputs]
        for _, source in self._sources:
            if not isinstance(source, tuple):
                tokenizer_of(source, tokenizer)  # its errors belong to the beginning

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies what would be read: size and time of files of text, samples of token ids, options."""
        digest = hashlib.sha256(repr((self.options, self.tokenizer)).encode())
        for _, source in self._sources:
            for each in source if isinstance(source, tuple) else [source.fingerprint]:
                digest.update(f"{each}\n".encode())
        return digest.hexdigest()

    @property
    def recorded_tokenizer(self) -> Tokenizer | None:
        """That of the first token shards; None if there are none."""
        shards = (source for _, source in self._sources if isinstance(source, ShardSource))
        return next((tokenizer_of(source, self.tokenizer) for source in shards), None)

    @property
    def size(self) -> int:
        """Bytes on disk, for progress."""
        return sum(self._bytes(source) for _, source in self._sources)

    def pieces(self, start: Place) -> Iterator[tuple[tuple[Place, int], Piece]]:
        """From `start` on: where reading goes on after a piece, bytes on disk up to there, and the piece."""
        before = sum(self._bytes(source) for _, source in self._sources[: start.source])
        for number in range(start.source, len(self._sources)):
            first, source = self._sources[number]
            at = start.at if number == start.source else ()
            if isinstance(source, tuple):
                for block in blocks(source, self.options, Cursor(*at), BLOCK_BYTES):
                    place = Place(number, dataclasses.astuple(block.end))
                    yield (place, before + block.bytes_read), Piece(first + block.start.file, block)
            else:
                token, document = at or (0, 0)
                eot = tokenizer_of(source, self.tokenizer).eot
                while token < source.n_tokens:
                    end, following = _documents_until(source, token, document, eot)
                    done = before + end * source.dtype.itemsize
                    yield (Place(number, (end, following)), done), Piece(first, None, (token, end), document)
                    token, document = end, following
            before += self._bytes(source)

    def _bytes(self, source: tuple[Input, ...] | TokenSource) -> int:
        if isinstance(source, tuple):
            return sum(each.size for each in source)
        return source.n_tokens * source.dtype.itemsize

    def name(self, file: int, document: int) -> str:
        """A document's place in words: file and line, text or row; folder and number of the document."""
        kind = self._kinds[file]
        return f"{self.files[file]}, {kind} {document}" if kind else self.files[file]

    def windows(self, count: int, tokens: int, generator: random.Random) -> Iterator[tuple[str, int | None, str]]:
        """Texts of about `tokens` tokens from `count` random places, shorter at the end of a document: document,
        character of it, text. The character is None for token ids."""
        sources = generator.choices(self._sources, [self._bytes(source) for _, source in self._sources], k=count)
        for first, source in self._sources:
            wanted = sources.count((first, source))
            if isinstance(source, tuple):
                yield from self._windows_of_text(wanted, tokens * _CHARACTERS, generator)
                continue
            tokenizer = tokenizer_of(source, self.tokenizer)
            for _ in range(wanted):
                at = generator.randrange(source.n_tokens)
                ids = source.read(at, min(tokens, source.n_tokens - at))
                ends = np.flatnonzero(ids == tokenizer.eot)
                text = tokenizer.decode(ids[: ends[0]] if len(ends) else ids)
                document = source.document_at(at)
                where = f"{self.files[first]}, token {at}" if document is None else self.name(first, document)
                yield where, None, text

    def _windows_of_text(
        self, count: int, characters: int, generator: random.Random
    ) -> Iterator[tuple[str, int | None, str]]:
        if not count:
            return
        number = next(n for n, (_, source) in enumerate(self._sources) if isinstance(source, tuple))
        reader = Reader(self.files, self.options, self.tokenizer)
        kept: list[tuple[str, int | None, str] | None] = [None] * count
        seen = 0
        for _, piece in self.pieces(Place(number)):
            if piece.block is None:
                break
            for part in reader.parts(piece):
                seen += len(part.text)
                for place in range(count):
                    # Each character so far is as likely as another to be where this window begins.
                    if part.text and generator.random() * seen < len(part.text):
                        at = generator.randrange(len(part.text))
                        where = self.name(piece.file, part.document)
                        kept[place] = where, at, part.text[at : at + characters]
        yield from (each for each in kept if each is not None)


class Reader:
    """Reads pieces of a corpus, in any process."""

    def __init__(self, files: Sequence[str], options: Options, tokenizer: str | None) -> None:
        self._files, self._options, self._tokenizer = files, options, tokenizer
        self.size = Size()
        self._opened: dict[str, tuple[TokenSource, Tokenizer]] = {}

    def parts(self, piece: Piece) -> Iterator[Part]:
        """The documents of a piece. Adds to `size` what was read.

        Raises:
            BadDocument: one cannot be read, unless the options say that it is left out.
        """
        yield from self._texts(piece.block) if piece.block else self._decoded(piece)

    def _texts(self, block: Block) -> Iterator[Part]:
        for document in documents(block, self._options):
            try:
                text = document.text()
            except BadDocument:
                if self._options.on_error == "stop":
                    raise
                self.size += Size(left_out=1)
                continue
            self.size += Size(1, _utf8_bytes(text))
            yield Part(document.record, text)

    def _decoded(self, piece: Piece) -> Iterator[Part]:
        source, tokenizer = self._source(self._files[piece.file])
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        document, begun = piece.document, False
        for first in range(*piece.tokens, _READ_TOKENS):
            ids = source.read(first, min(_READ_TOKENS, piece.tokens[1] - first))
            borders = np.flatnonzero(ids == tokenizer.eot).tolist()
            at = 0
            for border in [*borders, len(ids)]:
                data = tokenizer.decode_bytes(ids[at:border])
                last = border < len(ids) or first + len(ids) == piece.tokens[1]
                if len(data) or begun:
                    self.size += Size(int(not begun), len(data))
                    yield Part(document, decoder.decode(data, final=last), last)
                begun = not last and (begun or bool(data))
                document += border < len(ids)
                at = border + 1

    def _source(self, path: str) -> tuple[TokenSource, Tokenizer]:
        if path not in self._opened:
            source = open_source(SourceConfig(path))
            self._opened = {path: (source, tokenizer_of(source, self._tokenizer))}
        return self._opened[path]


def tokenizer_of(source: TokenSource, name: str | None) -> Tokenizer:
    """The tokenizer that a source was written with.

    Raises:
        UserError: the source does not record it and none is named, or it is another one today.
    """
    recorded = source.index.tokenizer.name if isinstance(source, ShardSource) else None
    chosen = name or recorded
    if chosen is None:
        raise UserError(f"{source.path} does not record its tokenizer; name it with --tokenizer")
    tokenizer = _load(chosen)
    if source.tokenizer_fingerprint not in (None, tokenizer.fingerprint):
        if name not in (None, recorded):
            raise UserError(
                f"{source.path} was tokenized with {recorded!r}, not with {name!r}; leave --tokenizer out: token "
                "shards record theirs"
            )
        raise UserError(
            f"{source.path} was tokenized with another tokenizer ({recorded}) than {chosen!r} is today; restore it, "
            "or give the text"
        )
    return tokenizer


@functools.lru_cache(maxsize=4)
def _load(name: str) -> Tokenizer:
    return load_tokenizer(name)


def _documents_until(source: TokenSource, token: int, document: int, eot: int) -> tuple[int, int]:
    """The token and the document with which a piece that begins at a document's first token ends: some
    `PIECE_TOKENS` later, at the end of a document."""
    target = token + PIECE_TOKENS
    if isinstance(source, ShardSource):
        inside = source.document_at(target) if target < source.n_tokens else None
        following = source.index.n_documents if inside is None else inside + 1
        at_end = following == source.index.n_documents
        return (source.n_tokens if at_end else source.document_start(following)), following
    at = token
    while at < source.n_tokens:
        borders = np.flatnonzero(source.read(at, min(_READ_TOKENS, source.n_tokens - at)) == eot)
        far = np.flatnonzero(at + borders + 1 >= target)
        if len(far):
            return at + int(borders[far[0]]) + 1, document + int(far[0]) + 1
        document += len(borders)
        at += _READ_TOKENS
    return source.n_tokens, document


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
