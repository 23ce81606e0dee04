"""Tokenizes text files into shards. One process reads and writes, the others parse and tokenize."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gpt3_jax.data.documents import BadDocument, Block, Cursor, Options, blocks, find_inputs
from gpt3_jax.data.files import is_file
from gpt3_jax.data.in_order import in_order, pool
from gpt3_jax.data.records import documents
from gpt3_jax.data.shards import DEFAULT_SHARD_TOKENS, INDEX, ShardSource, token_dtype
from gpt3_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt3_jax.data.writer import LeftOut, ShardWriter, clear_journal
from gpt3_jax.errors import UserError

BLOCK_BYTES = 4 * 2**20
COMMIT_SECONDS = 5.0
_KILLED = (
    "a tokenizing process was killed, perhaps for lack of memory; run the same command again with fewer "
    "--workers: it resumes where it stopped"
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a tokenization. Tokens and documents include those of an interrupted earlier run."""

    bytes_read: int
    bytes_total: int
    tokens: int
    documents: int


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The concatenated tokens of a block's documents, and the number of tokens of each."""

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    left_out: LeftOut


def tokenize(
    patterns: Sequence[str],
    out: str | Path,
    tokenizer: str,
    *,
    options: Options | None = None,
    workers: int = 1,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    block_bytes: int = BLOCK_BYTES,
    commit_seconds: float = COMMIT_SECONDS,
    on_progress: Callable[[Progress], None] | None = None,
) -> ShardSource:
    """Tokenizes files into shards.

    The result is a function of the files, `tokenizer`, `options` and `shard_tokens`. It does not depend on the number
    of workers, the block size or interruptions. After an interruption, the same call continues from the last commit. A
    folder that this call completed before is returned as it is. Empty documents are skipped and counted, and with
    `options.on_error` "skip" also those that cannot be read. The index records the counts.

    Args:
      patterns: files or globs, tokenized in this order (sorted within a glob).
      out: folder for the shards; unfinished work is in OUT.partial.
      tokenizer: a name for `load_tokenizer`.
      options: how documents are found in the files.
      workers: processes that tokenize; 1 stays in this process.
      shard_tokens: tokens in a shard.
      block_bytes: text handed to a worker at once.
      commit_seconds: work that an interruption may lose, in seconds.
      on_progress: called after each block.

    Raises:
      UserError: an input cannot be read as configured, or `out` holds something else.
      RunError: the disk is full, an input is damaged, a worker was killed.
    """
    options = options or Options()
    for name, value in (("workers", workers), ("shard_tokens", shard_tokens), ("block_bytes", block_bytes)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    inputs = find_inputs(patterns, options.kind)
    encoder = load_tokenizer(tokenizer)
    recipe: dict[str, object] = {
        "inputs": [{"path": file.path, "kind": file.kind, "bytes": file.size} for file in inputs],
        "text_key": options.text_key,
        "split_on": options.split_on,
        "errors": options.errors,
    }
    if options.on_error != "stop":
        recipe["on_error"] = options.on_error
    complete = _complete(Path(out), encoder, recipe, shard_tokens)
    if complete is not None:
        return complete
    identity = {"modified_ns": [file.modified_ns for file in inputs]}
    total = sum(file.size for file in inputs)
    with (
        ShardWriter(Path(out), encoder, recipe, identity, shard_tokens) as writer,
        pool(workers, _start_worker, (tokenizer, options)) as processes,
    ):
        start = Cursor(**writer.cursor) if writer.cursor else Cursor()
        committed = time.monotonic()
        last = start
        read = blocks(inputs, options, start, block_bytes)
        jobs = ((dataclasses.replace(block, data=b""), block) for block in read)
        here = functools.partial(encode_block, tokenizer=encoder, options=options)
        work = here if processes is None else _encode_in_worker
        for block, encoded in in_order(jobs, processes, work, 3 * workers, _KILLED):
            writer.append(encoded.tokens, encoded.lengths, encoded.text_bytes, encoded.left_out)
            last = block.end
            if time.monotonic() - committed >= commit_seconds:
                writer.commit(dataclasses.asdict(last))
                committed = time.monotonic()
            if on_progress:
                on_progress(Progress(block.bytes_read, total, writer.n_tokens, writer.n_documents))
        writer.commit(dataclasses.asdict(last))
        return writer.finish()


def encode_block(block: Block, tokenizer: Tokenizer, options: Options) -> Encoded:
    """Tokenizes a block's documents, each followed by end-of-text. Empty documents are skipped.

    Raises BadDocument, naming the place, unless `options.on_error` is "skip".
    """
    dtype = token_dtype(tokenizer.n_vocab)
    end = np.array([tokenizer.eot], dtype)
    parts, lengths, text_bytes, left_out = [np.empty(0, dtype)], [], 0, LeftOut()
    for document in documents(block, options):
        try:
            text = document.text()
            if not text:
                left_out = left_out.with_one("empty")
                continue
            ids = _encode(tokenizer, text, document.where).astype(dtype)
        except BadDocument as error:
            if options.on_error == "stop":
                raise
            left_out = left_out.with_one(error.reason, str(error))
            continue
        parts += [ids, end]
        lengths.append(len(ids) + 1)
        text_bytes += len(text.encode("utf-8", "replace"))
    return Encoded(np.concatenate(parts), np.array(lengths, np.int64), text_bytes, left_out)


def _encode(tokenizer: Tokenizer, text: str, where: str) -> np.ndarray:
    try:
        return tokenizer.encode_array(text)
    except UserError as error:
        raise BadDocument(f"{where}: {error}; --on-error skip skips such documents", "not tokenized") from None


def _complete(out: Path, tokenizer: Tokenizer, recipe: dict[str, object], shard_tokens: int) -> ShardSource | None:
    """The shards in `out` if they are complete and equal to what would be written, None if there are none."""
    if not is_file(out / INDEX):
        return None
    clear_journal(out)
    source = ShardSource(out)
    index = source.index
    if (index.tokenizer.fingerprint, index.recipe, index.shard_tokens) != (
        tokenizer.fingerprint,
        recipe,
        shard_tokens,
    ):
        raise UserError(
            f"{out} already holds shards, of other inputs or options; choose another folder, or delete it first"
        )
    return source


_worker: tuple[Tokenizer, Options]


def _start_worker(tokenizer: str, options: Options) -> None:
    global _worker
    _worker = load_tokenizer(tokenizer), options


def _encode_in_worker(block: Block) -> Encoded:
    return encode_block(block, *_worker)
