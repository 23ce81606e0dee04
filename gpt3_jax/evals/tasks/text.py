"""Language modelling over a text or token shards: ``text:FILE`` (GPT-3 section 3.1.1)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from gpt3_jax.cluster.log import log
from gpt3_jax.data.documents import Cursor, Options, blocks, find_inputs
from gpt3_jax.data.files import is_folder
from gpt3_jax.data.records import texts
from gpt3_jax.data.shards import ShardSource
from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import Likelihood
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.open_settings import STRIDE
from gpt3_jax.evals.tasks.task import Source, Task, Value

_BLOCK_BYTES = 1 << 24


class _ShardDocuments(Sequence[Item]):
    """The documents of token shards as texts, each decoded when it is asked for. Those without tokens but end-of-text
    are left out; the others keep their number among all."""

    def __init__(self, path: str) -> None:
        self._source = ShardSource(path)
        self._tokenizer = load_tokenizer(self._source.index.tokenizer.name)
        if self._tokenizer.fingerprint != self._source.index.tokenizer.fingerprint:
            raise UserError(
                f"{path} was tokenized with another tokenizer than {self._tokenizer.name!r} is today; restore it, or "
                "give the text"
            )
        self._starts = np.append(self._source.document_starts().astype(np.int64), self._source.n_tokens)
        lengths = np.diff(self._starts)
        held = lengths > 1
        held[lengths == 1] = [len(self._ids(int(n))) > 0 for n in np.flatnonzero(lengths == 1)]
        self._numbers = np.flatnonzero(held)

    def __len__(self) -> int:
        return len(self._numbers)

    def _ids(self, number: int) -> np.ndarray:
        """Tokens of a document, without its end-of-text."""
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        ids = self._source.read(start, end - start)
        return ids[:-1] if len(ids) and ids[-1] == self._tokenizer.eot else ids

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(self._numbers[index])
        text = self._tokenizer.decode(self._ids(number))
        if "\ufffd" in text:
            log.warning(f"{self._source.path}, document {number} is not all UTF-8 text; the rest is scored as U+FFFD")
        return Item(str(number), "", text)


def _documents(path: str) -> Iterator[Item]:
    options = Options()
    number = 0
    for block in blocks(find_inputs([path], "text" if _is_plain(path) else None), options, Cursor(), _BLOCK_BYTES):
        for text in texts(block, options):
            if text.strip():
                yield Item(str(number), "", text)
            number += 1


def _is_plain(path: str) -> bool:
    """Whether the name has no ending that says another format: any other file is one text."""
    name = path.lower().removesuffix(".gz").removesuffix(".zst")
    return not name.endswith((".jsonl", ".ndjson", ".parquet"))


def _load(path: str, _: Source, __: Mapping[str, Value]) -> Items:
    items: Sequence[Item] = _ShardDocuments(path) if is_folder(path) else list(_documents(path))
    if not items:
        raise UserError(f"{path} holds no text; give a file that is not empty")
    return Items(items, None, path)


def task(path: str) -> Task:
    """The task ``text:PATH``: a text file is one document; JSONL (key ``text``), Parquet and token shards hold many."""
    return Task(
        name=f"text:{os.path.basename(path.rstrip('/')) or path}",
        load=functools.partial(_load, path),
        scoring=Likelihood(),
        metrics=("loss per token", "perplexity per word", "bits per byte"),
        shots=0,
        delimiter="\n",
        splits=(Path(path).name, ""),
        open=(STRIDE,),
        about="loss per token, perplexity per word, bits per byte of a text",
    )
