"""BLEU of a corpus by sacrebleu (optional), with the standard error of a bootstrap over its sentences.

``BLEU`` is the paper's SacreBLEU (footnote of Table 3.4): BLEU+case.mixed+numrefs.1+smooth.exp+tok.intl. ``BLEU 13a``
has no smoothing, as multi-bleu.perl has none, and mteval's tokenizer 13a. The paper's "mb" rows cut words by the
scripts of XLM (Moses; for Romanian also without diacritics), so no value of the paper stands beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt3_jax.errors import UserError

SAMPLES = 1000
"""Of the bootstrap, as in sacrebleu."""
_SEED = 12345
_ORDER = 4
_SETTINGS = {"BLEU": ("intl", "exp"), "BLEU 13a": ("13a", "none")}

Pair = tuple[str, str]
"""What the model wrote, and the reference."""


def require() -> None:
    """Raises UserError if sacrebleu is not installed."""
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        raise UserError(
            "BLEU is computed by sacrebleu, which is not there: pip install -c constraints.txt -e '.[evals]'"
        ) from None


def signature(name: str) -> str:
    """What sacrebleu calls the measure, such as ``nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|version:2.6.0``."""
    from sacrebleu.metrics.bleu import BLEU

    tokenize, smooth = _SETTINGS[name]
    metric = BLEU(tokenize=tokenize, smooth_method=smooth)
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def sentence(name: str, text: str, reference: str) -> float:
    """BLEU of one sentence, from 0 to 1: smoothed, and of the orders of N-grams that it has. It tells which of two
    sentences is better; corpus BLEU is not the mean of sentence scores."""
    return _bleu(np.array(_counts(name, text, reference)), "exp", effective=True) / 100


def corpus(name: str, pairs: Sequence[Pair]) -> float:
    """BLEU of all sentences together, from 0 to 100."""
    return _bleu(_summed(name, pairs), _SETTINGS[name][1])


def bootstrapped(name: str, items: Sequence[Sequence[Pair]]) -> np.ndarray:
    """BLEU of `SAMPLES` corpora, each of as many items drawn with replacement. The draws depend on the number of items
    alone, so that two systems are compared by pairs.

    Args:
        items: each item's sentences, such as one for each seed.
    """
    counts = np.stack([_summed(name, pairs) for pairs in items])
    drawn = np.random.default_rng(_SEED).integers(0, len(counts), (SAMPLES, len(counts)))
    return np.array([_bleu(counts[rows].sum(axis=0), _SETTINGS[name][1]) for rows in drawn])


def _summed(name: str, pairs: Sequence[Pair]) -> np.ndarray:
    return np.array([_counts(name, text, reference) for text, reference in pairs]).sum(axis=0)


@functools.lru_cache(maxsize=1 << 16)
def _counts(name: str, text: str, reference: str) -> tuple[int, ...]:
    """What BLEU is made of: words of text and reference; by order, N-grams that match, and N-grams of the text."""
    score = _by_sentence(_SETTINGS[name][0]).sentence_score(text, [reference])
    return (score.sys_len, score.ref_len, *score.counts, *score.totals)


@functools.cache
def _by_sentence(tokenize: str) -> Any:
    require()
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize, effective_order=True)  # without it, it warns of single sentences


def _bleu(counts: np.ndarray, smooth: str, effective: bool = False) -> float:
    from sacrebleu.metrics.bleu import BLEU

    length, of_reference, *by_order = counts.tolist()
    matches, totals = by_order[:_ORDER], by_order[_ORDER:]
    score = BLEU.compute_bleu(matches, totals, length, of_reference, smooth_method=smooth, effective_order=effective)
    return float(score.score)
