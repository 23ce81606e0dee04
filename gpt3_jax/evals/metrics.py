"""Metrics: what one item scores, and the value of all of them with its standard error.

Items are the units of the standard error. With several seeds, an item's score is first averaged over the seeds, so
that n stays the number of items; the scatter from drawing demonstrations is part of the scatter between items. For one
seed and scores of 0 and 1 it is the binomial sqrt(p (1 - p) / (n - 1)); where all items or none are right, that of two
right and two wrong items more.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gpt3_jax.evals import answer_rules as rules
from gpt3_jax.evals import bleu
from gpt3_jax.evals.scoring import Judgement
from gpt3_jax.evals.tasks.item import Item

Z_LEVEL, Z_POWER = 1.959964, 0.841621
"""Quantiles of the normal distribution: two-sided level 5 %, power 80 %."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """What one item got with one seed."""

    item: Item
    seed: int
    judgement: Judgement


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric over all items."""

    value: float
    stderr: float | None
    """None for a single item."""
    detectable: float | None
    """Minimum detectable difference; see `detectable`."""
    items: int


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric by name."""

    name: str
    unit: str
    """``%`` for shares, which are given in per cent as the paper does; else what the value counts."""
    better: int
    """1 if more is better, -1 if less."""
    score: Callable[[Item, Judgement], float]
    """One item's score: 1 for right; for ratios the numerator."""
    estimate: Callable[[Metric, Sequence[Scored]], Estimate]
    weight: Callable[[Item, Judgement], float] = lambda *_: 1.0
    """One item's part of the denominator, such as its tokens; 1 for means, or 0 for what does not count."""
    of_ratio: Callable[[float], float] = lambda value: 100 * value
    """What is reported of the sum of scores over the sum of weights: in per cent, or its exponential."""
    slope: Callable[[float], float] = lambda _: 100.0
    """The derivative of `of_ratio`."""
    whole: Callable[[Sequence[Sequence[bleu.Pair]]], tuple[float, np.ndarray]] | None = None
    """For corpus-level metrics: the value and those of a bootstrap, which draws the same items for every system, from
    each item's texts and references. `score` then only ranks two answers."""
    by_items: bool = True
    """Whether an item has a score of its own, so that two evaluations can be compared item by item."""
    signature: Callable[[], str] | None = None
    """What the library calls the measure that computes it, for result files."""


def accuracy(item: Item, judgement: Judgement) -> float:
    """Whether the chosen completion is a right one."""
    return float(judgement.chosen in item.right)


def exact_match(item: Item, judgement: Judgement) -> float:
    """Whether the generated text is an accepted answer, but for white space around both."""
    text = text_of(judgement)
    return float(any(text == answer.strip() for answer in item.accepted))


def mean(metric: Metric, scored: Sequence[Scored]) -> Estimate:
    """The mean over the items that count of a score from 0 to 1, in per cent."""
    scores = [100 * score for score, weight in by_item(metric, scored).values() if weight]
    if not scores:
        return Estimate(math.nan, None, None, 0)
    value = statistics.fmean(scores)
    stderr = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
    return _estimate(metric, value, stderr, len(scores))


def ratio(metric: Metric, scored: Sequence[Scored]) -> Estimate:
    """Sum of scores over sum of weights, as in loss per token; the standard error by linearisation over the items."""
    pairs = by_item(metric, scored).values()
    count, bottom = len(pairs), sum(weight for _, weight in pairs)
    found = sum(score for score, _ in pairs) / bottom if bottom else math.nan
    value = metric.of_ratio(found)
    if count < 2 or not math.isfinite(value):
        return Estimate(value, None, None, count)
    rest = [score - found * weight for score, weight in pairs]
    stderr = math.sqrt(count / (count - 1) * sum(each * each for each in rest)) / bottom * metric.slope(found)
    return _estimate(metric, value, stderr, count)


def of_corpus(metric: Metric, scored: Sequence[Scored]) -> Estimate:
    """A measure of all items together; the standard error is the standard deviation over a bootstrap of the items. With
    several seeds, the corpus has each item once for each of them."""
    assert metric.whole
    items: dict[str, list[bleu.Pair]] = {}
    for each in scored:
        items.setdefault(each.item.id, []).append((text_of(each.judgement), each.item.completion))
    value, drawn = metric.whole(list(items.values()))
    stderr = float(np.std(drawn, ddof=1)) if len(items) > 1 else None
    return _estimate(metric, value, stderr, len(items))


def of_classes(metric: Metric, scored: Sequence[Scored]) -> Estimate:
    """Macro F1 in per cent: the mean over the classes of F1, without classes that are neither right nor chosen for any
    item. The classes are the choices, which are the same for all items. With several seeds, the mean over them. The
    standard error is by the jackknife over items."""
    seeds = sorted({each.seed for each in scored})
    places = {id: n for n, id in enumerate(dict.fromkeys(each.item.id for each in scored))}
    classes = max(len(each.item.choices) for each in scored)
    # For each item, seed and class: chosen and right, chosen and wrong, right and not chosen.
    counts = np.zeros((len(places), len(seeds), classes, 3))
    for each in scored:
        right, chosen = each.item.right[0], each.judgement.chosen
        of_item = counts[places[each.item.id], seeds.index(each.seed)]
        if chosen == right:
            of_item[right, 0] += 1
            continue
        of_item[right, 2] += 1
        if chosen is not None:
            of_item[chosen, 1] += 1
    totals = counts.sum(axis=0)
    value = float(_macro_f1(totals))
    if len(places) < 2:
        return Estimate(value, None, None, len(places))
    without = _macro_f1(totals - counts)
    n = len(places)
    stderr = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
    return _estimate(metric, value, stderr, n)


def _macro_f1(counts: np.ndarray) -> np.ndarray:
    """Per cent, from counts of (…, seed, class, 3), averaged over the seeds."""
    both, only_chosen, only_right = np.moveaxis(counts, -1, 0)
    of_class = 2 * both + only_chosen + only_right
    f1 = np.divide(2 * both, of_class, out=np.zeros_like(both), where=of_class > 0)
    found: np.ndarray = 100 * (f1.sum(-1) / np.maximum((of_class > 0).sum(-1), 1)).mean(-1)
    return found


def text_of(judgement: Judgement) -> str:
    """What the model generated, without white space around."""
    return (judgement.text or "").strip()


def by_item(metric: Metric, scored: Sequence[Scored]) -> dict[str, tuple[float, float]]:
    """Each item's score and weight, averaged over the seeds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for each in scored:
        pair = metric.score(each.item, each.judgement), metric.weight(each.item, each.judgement)
        found.setdefault(each.item.id, []).append(pair)
    return {
        name: (statistics.fmean(score for score, _ in pairs), statistics.fmean(weight for _, weight in pairs))
        for name, pairs in found.items()
    }


def _estimate(metric: Metric, value: float, stderr: float | None, items: int) -> Estimate:
    """With the detectable difference. Where all items or none are right, no item differs from another, and the standard
    error is not 0: it is that of two right and two wrong items more (Agresti and Coull)."""
    if stderr is not None and metric.unit == "%" and value in (0, 100):
        share = (value / 100 * items + 2) / (items + 4)
        stderr = 100 * math.sqrt(share * (1 - share) / (items + 4))
    return Estimate(value, stderr, detectable(stderr), items)


def detectable(stderr: float | None) -> float | None:
    """The difference between two models that a comparison would find with power 80 % at the two-sided level 5 %, if
    each is evaluated on as many items drawn independently: (1.96 + 0.84) · sqrt(2) · standard error. None where all
    items are alike, which says nothing.

    Two runs on the same items can be compared item by item, and find smaller differences (`gpt3-jax report compare`).
    """
    return math.sqrt(2) * (Z_LEVEL + Z_POWER) * stderr if stderr else None


def _minus_logprob(_: Item, judgement: Judgement) -> float:
    return -(judgement.logprob or 0.0)


def _words(item: Item, judgement: Judgement) -> float:
    return judgement.words if item.words is None else item.words


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _same(value: float) -> float:
    return value


def _one(_: float) -> float:
    return 1.0


def _with_none(rule: Callable[[str, Sequence[str], str], float]) -> Callable[[Item, Judgement], float]:
    """A rule that knows questions without an answer."""
    return lambda item, judgement: rule(text_of(judgement), item.accepted, item.unanswerable)


def _agreed(item: Item, _: Judgement) -> float:
    return float(rules.quac_human_f1(item.accepted, item.unanswerable) >= rules.QUAC_AGREEMENT)


def _heq_q(item: Item, judgement: Judgement) -> float:
    """Whether the F1 is at least that of people among themselves (QuAC's human equivalence)."""
    f1 = rules.quac_f1(text_of(judgement), item.accepted, item.unanswerable)
    return float(f1 >= rules.quac_human_f1(item.accepted, item.unanswerable))


def _drop(item: Item, judgement: Judgement) -> tuple[float, float]:
    spans = item.spans or [(answer,) for answer in item.accepted]
    return rules.drop_scores(text_of(judgement), spans, item.joiner)


def _bleu(name: str) -> Metric:
    def whole(items: Sequence[Sequence[bleu.Pair]]) -> tuple[float, np.ndarray]:
        return bleu.corpus(name, [pair for pairs in items for pair in pairs]), bleu.bootstrapped(name, items)

    def score(item: Item, judgement: Judgement) -> float:
        return bleu.sentence(name, text_of(judgement), item.completion)

    return Metric(name, "", 1, score, of_corpus, whole=whole, signature=lambda: bleu.signature(name))


def _all_answers_right(item: Item, judgement: Judgement) -> float:
    return float(judgement.picked == item.right)


def _twice_found(item: Item, judgement: Judgement) -> float:
    return 2.0 * len({*judgement.picked} & {*item.right})


def _picked_and_right(item: Item, judgement: Judgement) -> float:
    return len(judgement.picked) + len(item.right)


def _f1_of_the_chosen(item: Item, judgement: Judgement) -> float:
    """F1 of words of what the chosen choice has in its place, by ReCoRD's script, which is SQuAD's."""
    return 0.0 if judgement.chosen is None else rules.squad_f1(item.fillings[judgement.chosen], item.accepted)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "%", 1, accuracy, mean),
        Metric("exact match", "%", 1, exact_match, mean),
        Metric("macro F1", "%", 1, accuracy, of_classes, by_items=False),
        Metric("all answers right", "%", 1, _all_answers_right, mean),
        Metric("F1a", "%", 1, _twice_found, ratio, _picked_and_right),
        Metric("ReCoRD F1", "%", 1, _f1_of_the_chosen, mean),
        Metric("perplexity of the completion", "", -1, _minus_logprob, ratio, of_ratio=_exp, slope=_exp),
        Metric("TriviaQA exact match", "%", 1, lambda i, j: rules.trivia_exact(text_of(j), i.accepted), mean),
        Metric("SQuAD exact match", "%", 1, _with_none(rules.squad_exact), mean),
        Metric("SQuAD F1", "%", 1, _with_none(rules.squad_f1), mean),
        Metric("CoQA F1", "%", 1, lambda i, j: rules.coqa_f1(text_of(j), i.accepted), mean),
        Metric("QuAC F1", "%", 1, _with_none(rules.quac_f1), mean, _agreed),
        Metric("QuAC HEQ-Q", "%", 1, _heq_q, mean, _agreed),
        Metric("DROP exact match", "%", 1, lambda i, j: _drop(i, j)[0], mean),
        Metric("DROP F1", "%", 1, lambda i, j: _drop(i, j)[1], mean),
        _bleu("BLEU"),
        _bleu("BLEU 13a"),
        Metric("loss per token", "nats", -1, _minus_logprob, ratio, lambda _, j: j.tokens, _same, _one),
        Metric("perplexity per word", "", -1, _minus_logprob, ratio, _words, _exp, _exp),
        Metric("bits per byte", "bits", -1, _minus_logprob, ratio, lambda _, j: j.bytes * math.log(2), _same, _one),
    )
}
