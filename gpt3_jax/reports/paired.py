"""Two evaluations compared item by item: the difference, its standard error, and a sign test.

Both models answered the same items, so most of the scatter between items is common to both and drops out of the
difference. An item's score is averaged over the seeds. The test is the exact two-sided sign test over the items whose
scores differ; for one seed and scores of 0 and 1 it is McNemar's exact test.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gpt3_jax import quantities
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import results
from gpt3_jax.evals.evaluation import ITEMS
from gpt3_jax.evals.metrics import METRICS, Metric
from gpt3_jax.evals.tasks import rows

_Key = tuple[str, str, str]
"""Task, K, metric."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """One model's items of one task, K and metric."""

    scores: Mapping[str, tuple[float, float]]
    """Score and weight by item, each averaged over the seeds."""
    prompts: Mapping[str, frozenset[str]]
    """The item's prompts with all seeds."""
    fingerprints: Mapping[str, str]
    """Of the item."""
    texts: Mapping[str, list[tuple[str, str]]]
    """What was generated for the item and its reference, for each seed; none where nothing is generated."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """B against A on the items that both have."""

    task: str
    shots: str
    metric: str
    items: int
    only_one: int
    """Items that only one of them has; they are left out."""
    other_prompts: int
    """Items whose prompts differ between the two, such as by the demonstrations that fitted."""
    a: float
    b: float
    difference: float
    """b - a."""
    stderr: float | None
    a_better: int
    b_better: int
    """Items on which one has the better score."""
    p: float
    """Of the sign test: how likely so uneven a split or one more uneven is, if neither is better."""


def compare(first: str, second: str | None) -> tuple[str, str, list[Comparison]]:
    """The two models, each by its name and the folder of its evaluation, and their comparison in each task, K and
    metric that both have.

    Args:
        first, second: folders of ``gpt3-jax evaluate --out``; without the second, the first must hold two models.

    Raises:
        UserError: a folder without items, with another number of models, or nothing in common; items of the same task
            and id that are not the same example.
        RunError: the file of items cannot be read or is damaged.
    """
    models = [*read(first).items()]
    if second is not None:
        others = [*read(second).items()]
        for folder, found in ((first, models), (second, others)):
            if len(found) != 1:
                names = ", ".join(name for name, _ in found)
                raise UserError(f"{folder} holds {len(found)} models ({names}); evaluate each into a folder of its own")
        models += others
    if len(models) != 2:
        raise UserError(f"{first} holds {len(models)} models; expected two folders, or one with two models")
    (name_a, a), (name_b, b) = models
    common = [key for key in a if key in b]
    if not common:
        both = f"{first} and {second}" if second else f"the models of {first}"
        raise UserError(f"{both} have no task with the same K in common; nothing can be compared")
    for key in common:
        _require_same(key[0], name_a, a[key].fingerprints, name_b, b[key].fingerprints)
    compared = [_compare(key, a[key], b[key]) for key in common]
    return f"{name_a} ({first})", f"{name_b} ({second or first})", compared


def _require_same(task: str, name_a: str, a: Mapping[str, str], name_b: str, b: Mapping[str, str]) -> None:
    """Raises UserError if items of one id differ. Only items are compared: one set may be a part of the other."""
    common = [item for item in a if item in b]
    different = [item for item in common if a[item] != b[item]]
    if different:
        raise UserError(
            f"task {task}: {len(different):,} of {len(common):,} items are other examples for {name_a} than for "
            f"{name_b} (the first: {different[0]!r}); evaluate both on the same file, with the same settings"
        )


def table(name_a: str, name_b: str, found: Sequence[Comparison]) -> str:
    """Aligned text."""
    head = ["task", "metric", "K", "items", "A", "B", "B - A", "± s.e.", "A better", "B better", "p"]
    lines = [
        [
            *(each.task, each.metric, each.shots, f"{each.items:,}", f"{each.a:.2f}", f"{each.b:.2f}"),
            f"{each.difference:+.2f}",
            "–" if each.stderr is None else f"{each.stderr:.2f}",
            *(f"{each.a_better:,}", f"{each.b_better:,}", f"{each.p:.2g}"),
        ]
        for each in found
    ]
    text = f"A: {name_a}\nB: {name_b}\n\n{quantities.grid(lines, head, left=2)}\n\n"
    text += "  p: exact two-sided sign test over the items on which the two differ; not corrected for several tests\n"
    for each in found:
        where = f"  {each.task}, {each.metric}, K = {each.shots}: "
        if each.only_one:
            text += f"{where}{each.only_one} items that only one of them has are left out\n"
        if each.other_prompts:
            text += f"{where}the prompts of {each.other_prompts} items differ between the two\n"
    return text


def to_json(name_a: str, name_b: str, found: Sequence[Comparison]) -> str:
    data = {"a": name_a, "b": name_b, "comparisons": [dataclasses.asdict(each) for each in found]}
    return results.to_json(data, indent=1) + "\n"


def read(folder: str) -> dict[str, dict[_Key, Scores]]:
    """Scores by model."""
    path = Path(folder) / ITEMS
    if not path.is_file():
        raise UserError(f"{folder} has no {ITEMS}; expected a folder that gpt3-jax evaluate --out wrote")
    gathered: dict[str, dict[_Key, dict[str, list[tuple[float, float, str, str, list[tuple[str, str]]]]]]] = {}
    for where, row in rows.rows(str(path)):
        try:
            for metric, score in row["scores"].items():
                key = str(row["task"]), str(row["shots"]), str(metric)
                prompts, fingerprint = "\n".join(row["prompts"]), str(row["fingerprint"])
                texts = [(str(row["generated"]).strip(), str(row["expected"][0]))] if "generated" in row else []
                found = float(score), float(row["weights"][metric]), prompts, fingerprint, texts
                items = gathered.setdefault(str(row["model"]), {}).setdefault(key, {})
                items.setdefault(str(row["item"]), []).append(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{where} is damaged ({type(error).__name__}: {error}); evaluate again") from None
    return {
        model: {
            key: Scores(
                {
                    item: (statistics.fmean(p[0] for p in pairs), statistics.fmean(p[1] for p in pairs))
                    for item, pairs in items.items()
                },
                {item: frozenset(p[2] for p in pairs) for item, pairs in items.items()},
                {item: pairs[0][3] for item, pairs in items.items()},
                {item: [text for pair in pairs for text in pair[4]] for item, pairs in items.items()},
            )
            for key, items in of_model.items()
        }
        for model, of_model in gathered.items()
    }


def _compare(key: _Key, a: Scores, b: Scores) -> Comparison:
    task, shots, name = key
    metric = METRICS[name]
    both = [item for item in a.scores if item in b.scores]
    common = [item for item in both if a.scores[item][1] or b.scores[item][1]]  # without those that do not count
    pairs_a, pairs_b = ([side.scores[item] for item in common] for side in (a, b))
    value_a, rest_a = value(metric, pairs_a)
    value_b, rest_b = value(metric, pairs_b)
    stderr = None
    if len(common) > 1:
        apart = math.hypot(*(x - y for x, y in zip(rest_b, rest_a, strict=True)))  # holds what squares would not
        stderr = math.sqrt(len(common) / (len(common) - 1)) * apart
    if metric.whole:
        value_a, drawn_a = metric.whole([a.texts[item] for item in common])
        value_b, drawn_b = metric.whole([b.texts[item] for item in common])
        stderr = float(np.std(drawn_b - drawn_a, ddof=1)) if len(common) > 1 else None
    # Compared per item by score over weight, which a tokenizer that cuts finer would change for loss per token.
    ahead = [metric.better * (y / v - x / w) for (x, w), (y, v) in zip(pairs_a, pairs_b, strict=True) if w and v]
    b_better, a_better = sum(each > 0 for each in ahead), sum(each < 0 for each in ahead)
    return Comparison(
        task=task,
        shots=shots,
        metric=name,
        items=len(common),
        only_one=len(a.scores) + len(b.scores) - 2 * len(both),
        other_prompts=sum(a.prompts[item] != b.prompts[item] for item in common),
        a=value_a,
        b=value_b,
        difference=value_b - value_a,
        stderr=stderr,
        a_better=a_better,
        b_better=b_better,
        p=sign_test(a_better, b_better),
    )


def value(metric: Metric, pairs: Sequence[tuple[float, float]]) -> tuple[float, list[float]]:
    """The metric over items, and what each item adds to its error, by linearisation."""
    bottom = sum(weight for _, weight in pairs) or math.nan
    found = sum(score for score, _ in pairs) / bottom
    slope = metric.slope(found)
    return metric.of_ratio(found), [slope * (score - found * weight) / bottom for score, weight in pairs]


def sign_test(one: int, other: int) -> float:
    """Two-sided probability of a split at least as uneven, if each of one + other items is a fair coin."""
    n, fewer = one + other, min(one, other)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)
