"""Streams of sequences: endless, shuffled and mixed for training; in file order for evaluation.

A sequence is n_ctx + 1 tokens: the input, and the target shifted by one. Sequence i of a source begins at token
i * n_ctx, so neighbours share one token, and each token but the first of a source is predicted once per epoch.
Documents are packed end to end, without a mask between them (GPT-3, section 2.2 and appendix B).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from gpt3_jax.config import SourceConfig
from gpt3_jax.data.mixture import Mixture
from gpt3_jax.data.sources import TokenSource, open_source
from gpt3_jax.errors import RunError, UserError


@dataclasses.dataclass(frozen=True)
class Location:
    """The location of a sequence on disk."""

    path: str
    epoch: int
    token: int
    """Position of its first token in the source."""
    document: int | None
    """Index of the document that holds the first token, from 0; None if the format does not record documents."""

    def __str__(self) -> str:
        document = "" if self.document is None else f", document {self.document}"
        return f"{self.path}, epoch {self.epoch}, token {self.token}{document}"


class Stream:
    """The training stream: sequence n is a pure function of (sources, weights, n_ctx, seed, n).

    Args:
      sources: opened sources.
      weights: relative share of each.
      n_ctx: tokens of input in a sequence.
      seed: of the order, 0 to 2**63 - 1.
      n_vocab: token ids from here on are an error; None: no check.

    Raises:
      UserError: no sources, a source shorter than one sequence, ids beyond n_vocab, or unusable weights.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        weights: Sequence[float],
        n_ctx: int,
        seed: int,
        n_vocab: int | None = None,
    ) -> None:
        self._reader = _Reader(sources, n_ctx, n_vocab)
        self.n_ctx = n_ctx
        self.sources = tuple((source.path, source.fingerprint) for source in sources)
        """(path, fingerprint) of each source."""
        self.mixture = Mixture(weights, self._reader.sizes, seed)
        self.fingerprint = _digest(
            {
                "sources": [source.fingerprint for source in sources],
                "parts": self.mixture.parts,
                "n_ctx": n_ctx,
                "seed": seed,
            }
        )
        """Streams with equal fingerprints give equal sequences, as far as samples of large files show."""

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        """Reads the sequences `indices` (int64 [n], from 0, without end): int32 [n, n_ctx + 1]. Thread-safe.

        Raises RunError for a token id that the model does not have, with its location.
        """
        draw = self.mixture.draw(indices)
        return self._reader.read(draw.source, draw.sequence)

    def check_files(self) -> None:
        """Raises RunError, with the file's name, if a token file changed since the stream was opened."""
        self._reader.check_files()

    def locate(self, indices: np.ndarray) -> list[Location]:
        """The location of each of the sequences `indices`."""
        draw = self.mixture.draw(indices)
        return [
            self._reader.location(int(source), int(sequence), int(epoch))
            for source, sequence, epoch in zip(draw.source, draw.sequence, draw.epoch, strict=True)
        ]


class HeldOut:
    """Held-out sources one after the other, unshuffled. Tokens after a source's last whole sequence are not read.

    Arguments and errors as for `Stream`.
    """

    def __init__(self, sources: Sequence[TokenSource], n_ctx: int, n_vocab: int | None = None) -> None:
        self._reader = _Reader(sources, n_ctx, n_vocab)
        self.n_ctx = n_ctx
        self.sources = tuple((source.path, source.fingerprint) for source in sources)
        self._ends = np.cumsum(np.array(self._reader.sizes, np.int64))
        self.n_sequences = int(self._ends[-1])
        self.fingerprint = _digest({"sources": [source.fingerprint for source in sources], "n_ctx": n_ctx})

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        """Reads the sequences `indices` (int64 [n], each below n_sequences): int32 [n, n_ctx + 1]. Thread-safe."""
        return self._reader.read(*self._place(indices))

    def check_files(self) -> None:
        """Raises RunError, with the file's name, if a token file changed since the stream was opened."""
        self._reader.check_files()

    def locate(self, indices: np.ndarray) -> list[Location]:
        """The location of each of the sequences `indices`."""
        source, sequence = self._place(indices)
        return [self._reader.location(int(s), int(i), 0) for s, i in zip(source, sequence, strict=True)]

    def _place(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self.n_sequences):
            raise ValueError(f"sequences {indices.min()} to {indices.max()} of {self.n_sequences} held out")
        source = np.searchsorted(self._ends, indices, side="right")
        return source, indices - np.concatenate([[0], self._ends])[source]


class _Reader:
    """Reads windows of n_ctx + 1 tokens from several sources and checks them against the vocabulary."""

    def __init__(self, sources: Sequence[TokenSource], n_ctx: int, n_vocab: int | None) -> None:
        if not sources:
            raise UserError("no data sources are given; set data.train or data.eval to a list of paths")
        self._sources = tuple(sources)
        self._n_ctx = n_ctx
        self._n_vocab = n_vocab
        for source in sources:
            if source.n_tokens < n_ctx + 1:
                raise UserError(
                    f"{source.path} has {source.n_tokens} tokens, fewer than one sequence of n_ctx + 1 = {n_ctx + 1}; "
                    "lower model.n_ctx or give more text"
                )
            if n_vocab is not None and source.max_token is not None and source.max_token >= n_vocab:
                raise UserError(
                    f"{source.path} holds token id {source.max_token}, but the model's vocabulary ends at "
                    f"{n_vocab - 1}; raise model.n_vocab, or tokenize with the model's tokenizer"
                )
        self.sizes = tuple((source.n_tokens - 1) // n_ctx for source in sources)

    def read(self, source: np.ndarray, sequence: np.ndarray) -> np.ndarray:
        out = np.empty((len(source), self._n_ctx + 1), np.int32)
        for row, (number, index) in enumerate(zip(source.tolist(), sequence.tolist(), strict=True)):
            tokens = self._sources[number].read(index * self._n_ctx, self._n_ctx + 1)
            # Before the cast, which would wrap a wide id into a valid one.
            if self._n_vocab is not None and (tokens.max() >= self._n_vocab or tokens.min() < 0):
                self._refuse(tokens, self.location(number, index, 0))
            out[row] = tokens
        return out

    def check_files(self) -> None:
        for source in self._sources:
            source.check_files()

    def location(self, source: int, sequence: int, epoch: int) -> Location:
        start = sequence * self._n_ctx
        return Location(self._sources[source].path, epoch, start, self._sources[source].document_at(start))

    def _refuse(self, tokens: np.ndarray, location: Location) -> None:
        assert self._n_vocab is not None
        at = int(np.flatnonzero((tokens >= self._n_vocab) | (tokens < 0))[0])
        raise RunError(
            f"{location.path} holds token id {tokens[at]} at token {location.token + at}, but the model's vocabulary "
            f"ends at {self._n_vocab - 1}; the file is damaged, of another tokenizer or of another dtype "
            "(`gpt3-jax data inspect --verify` compares checksums)"
        )


def open_stream(
    configs: Sequence[SourceConfig], n_ctx: int, seed: int, n_vocab: int, tokenizer_fingerprint: str | None
) -> Stream:
    """Opens the training stream of a configuration.

    Args:
      configs: the sources and their weights.
      n_ctx: tokens of input in a sequence.
      seed: of the order.
      n_vocab: the model's vocabulary.
      tokenizer_fingerprint: of the configuration's tokenizer; sources that record another are refused. None: no check.
    """
    sources = _open(configs, n_vocab, tokenizer_fingerprint)
    return Stream(sources, [config.weight for config in configs], n_ctx, seed, n_vocab)


def open_heldout(
    configs: Sequence[SourceConfig], n_ctx: int, n_vocab: int, tokenizer_fingerprint: str | None
) -> HeldOut:
    """Opens held-out sources for evaluation; arguments as for `open_stream`. Weights are not used."""
    return HeldOut(_open(configs, n_vocab, tokenizer_fingerprint), n_ctx, n_vocab)


def _open(configs: Sequence[SourceConfig], n_vocab: int, tokenizer_fingerprint: str | None) -> list[TokenSource]:
    sources = [open_source(config, n_vocab) for config in configs]
    for source in sources:
        theirs = source.tokenizer_fingerprint
        if tokenizer_fingerprint is not None and theirs is not None and theirs != tokenizer_fingerprint:
            raise UserError(
                f"{source.path} was written by the tokenizer {theirs[:12]}, but data.tokenizer is "
                f"{tokenizer_fingerprint[:12]}; set data.tokenizer to the one that wrote it, or tokenize again"
            )
    return sources


def _digest(record: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
