"""The longest match of samples in the training text: in words by the paper's normalisation, and as they are written."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt3_jax import quantities
from gpt3_jax.cluster.log import log
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals.kept import KeptAnswers
from gpt3_jax.evals.requests import Completed, Completion, Request
from gpt3_jax.evals.requests import Sample as Drawn
from gpt3_jax.evals.run import answer_all
from gpt3_jax.evals.subject import Subject
from gpt3_jax.evals.tasks import rows
from gpt3_jax.ngrams.corpus import Corpus
from gpt3_jax.ngrams.matches import PLACES, Matcher, Matchers, Matches
from gpt3_jax.ngrams.scan import Progress, Took, scan
from gpt3_jax.ngrams.wanted import Wanted, wanted
from gpt3_jax.ngrams.words import AS_WRITTEN, PAPER, words
from gpt3_jax.plan.picture import pyplot, save

PICTURE = "memorisation.png"
_SHOWN = 60
_ROWS = 20
_JSON_LINES = (".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A text that is looked for."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a match stands."""

    document: str
    character: int
    """Of the document, at which it begins."""
    times: int
    """In this document."""


@dataclasses.dataclass(frozen=True)
class Match:
    """A longest match."""

    words: int
    tokens: int | None
    """Of its text; None without a tokenizer."""
    word: int
    """Of the sample, at which it begins."""
    text: str
    """As the sample has it."""
    times: int
    """How often it stands in the training text."""
    places: tuple[Place, ...]
    """The first."""


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A document that shares N-grams with a sample."""

    document: str
    containment: float
    """Share of the sample's distinct N-grams that stand in the document."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A sample and its matches."""

    sample: Sample
    words: int
    longest: Match | None
    """Words in lower case, punctuation left out; None if there is none of `least` words."""
    verbatim: Match | None
    """Words as they are written."""
    neighbours: tuple[Neighbour, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """Samples against a corpus."""

    found: tuple[Found, ...]
    least: int
    took: Took
    corpus: Corpus


def read_samples(path: str, split_on: str = "") -> list[Sample]:
    """Samples of a file: JSON lines, each a text or an object with the key ``text``, or a text, one sample or several.

    Args:
        split_on: separator of the samples in a text.

    Raises:
        UserError: the file is not there, is not what its name says, or holds no sample.
        RunError: it is damaged.
    """
    whole = rows.read_text(path)
    if not path.lower().removesuffix(".gz").removesuffix(".zst").endswith(_JSON_LINES):
        texts = whole.split(split_on) if split_on else [whole]
        several = len(texts) > 1
        found = [Sample(f"{path}, text {n}" if several else path, text) for n, text in enumerate(texts, start=1)]
    else:
        found = []
        for number, line in enumerate(whole.split("\n"), start=1):
            if line.strip():
                found.append(Sample(f"{path}, line {number}", _text_of(line, f"{path}, line {number}")))
    found = [each for each in found if each.text.strip()]
    if not found:
        raise UserError(f"{path} holds no sample; expected a text, or JSON lines of texts")
    return found


def _text_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not JSON: {line.strip()[:_SHOWN]}; expected a text or an object a line") from None
    if isinstance(value, dict):
        value = rows.required(value, "text", where)
    if not isinstance(value, str):
        raise UserError(f"{where} holds no text: {line.strip()[:_SHOWN]}; expected a text, or an object with 'text'")
    return value


def generated(
    subject: Subject,
    name: str,
    count: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    kept: KeptAnswers | None = None,
) -> list[Sample]:
    """Samples of a model after nothing but end-of-text, which `kept` keeps as they come.

    Raises:
        UserError: a number out of range.
    """
    if count < 1 or max_tokens < 1:
        raise UserError(f"--count is {count} and --max-tokens is {max_tokens}; expected at least 1 of each")
    drawn = [Drawn(float(temperature), 0, 1.0, seed, number) for number in range(count)]
    requests = [Completion("", (), max_tokens, each) for each in drawn]
    asked: dict[Request, str] = {request: f"sample {number}" for number, request in enumerate(requests)}
    answers = answer_all(subject, "memorisation", asked, kept, f"{subject.name}: samples")
    found = []
    for number, request in enumerate(requests):
        answer = answers[request]
        assert isinstance(answer, Completed)
        found.append(Sample(f"{name}, sample {number}", answer.text))
    if max_tokens > subject.config.n_ctx - 1:
        log.warning(
            f"a sample has at most {subject.config.n_ctx - 1} tokens, the context; --max-tokens is {max_tokens}"
        )
    return found


def study(
    samples: Sequence[Sample],
    corpus: Corpus,
    least: int = 8,
    neighbours: int = 3,
    tokenizer: Tokenizer | None = None,
    workers: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> Study:
    """Finds the longest match of each sample in the corpus, in one pass over it.

    Args:
        least: matches of fewer words are not looked for.
        neighbours: documents to name for each sample, by shared N-grams of `least` words.
        tokenizer: counts the tokens of matches.

    Raises:
        UserError: a number out of range, a document cannot be read as configured.
        RunError: a file is damaged, a process was killed.
    """
    if least < 2:
        raise UserError(f"the shortest match is {least} words; expected at least 2")
    if neighbours < 0:
        raise UserError(f"neighbours is {neighbours}; expected 0 (none) or more")
    texts = [each.text for each in samples]
    lists = [wanted(texts, least, rule) for rule in (PAPER, AS_WRITTEN)]
    matchers = Matchers((Matcher(lists[0], neighbours), Matcher(lists[1])))
    both = Matches(neighbours), Matches()
    took = Took()

    began = time.monotonic()
    for piece in scan(corpus, matchers, workers, on_progress=on_progress):
        took.add(piece)
        for matches, found in zip(both, piece.result, strict=True):
            matches.add(piece.file, found)
    took.seconds = time.monotonic() - began
    all_found = []
    for number, sample in enumerate(samples):
        grams = len(np.unique(lists[0].of_text(number)))
        all_found.append(
            Found(
                sample,
                int(np.diff(lists[0].firsts)[number]),
                _match(both[0].longest(number), lists[0], sample, corpus, tokenizer),
                _match(both[1].longest(number), lists[1], sample, corpus, tokenizer),
                tuple(
                    Neighbour(corpus.name(file, document), shared / grams)
                    for _, shared, document, file in both[0].nearest(number).tolist()
                ),
            )
        )
    return Study(tuple(all_found), least, took, corpus)


def _match(found: np.ndarray, of: Wanted, sample: Sample, corpus: Corpus, tokenizer: Tokenizer | None) -> Match | None:
    if not len(found):
        return None
    _, count, word, *_ = found[0].tolist()
    text = excerpt(sample.text, of, word, count)
    return Match(
        words=count,
        tokens=len(tokenizer.encode(text)) if tokenizer else None,
        word=word,
        text=text,
        times=int(found[:, 5].sum()),
        places=tuple(
            Place(corpus.name(file, document), offset, times)
            for _, _, _, document, offset, times, file in found[:PLACES].tolist()
        ),
    )


def excerpt(text: str, of: Wanted, word: int, count: int) -> str:
    """`count` words of a text from `word` on, as they are written."""
    cut = words(text, of.rule)
    return text[cut.starts[word] : cut.ends[word + count - 1]]


def table(found: Study) -> str:
    """Aligned text: the samples with the longest matches first, where the first of these stand, and the speed."""
    matched = [each for each in found.found if each.longest or each.verbatim]
    ordered = sorted(matched, key=lambda each: -(each.longest.words if each.longest else 0))
    lines = []
    for each in ordered[:_ROWS]:
        longest, verbatim = each.longest, each.verbatim
        tokens = "–" if verbatim is None or verbatim.tokens is None else f"{verbatim.tokens:,}"
        nearest = f"{100 * each.neighbours[0].containment:.0f}" if each.neighbours else "–"
        lines.append([_shortened(each.sample.name), f"{each.words:,}"])
        lines[-1] += [*_cells(longest, found.least), *_cells(verbatim, found.least), tokens, nearest]
    head = ["sample", "words", "longest match", "times", "as written", "times", "its tokens", "nearest %"]
    text = quantities.grid(lines, head) + "\n\n" if lines else ""
    if len(ordered) > _ROWS:
        text += f"  … and {len(ordered) - _ROWS:,} samples with shorter matches\n"
    for each in ordered[:3]:
        if each.longest:
            place = each.longest.places[0]
            shown = " ".join(each.longest.text.split())
            text += f"  {_shortened(each.sample.name)}: {place.document}, character {place.character}: {_cut(shown)}\n"
    text += (
        f"  {len(ordered):,} of {len(found.found):,} samples share {found.least} words in a row with the training "
        "text\n"
        f"{_short(found)}{found.took.lines()}"
        "  words, longest match: words in lower case, which punctuation separates\n"
        "  as written: words with case and punctuation, which white space separates; a sign that stands alone is one\n"
        f"  nearest: share of the sample's {found.least}-grams in one document\n"
    )
    return text


def _short(found: Study) -> str:
    short = sum(each.words < found.least for each in found.found)
    return f"  {short:,} samples have fewer than {found.least} words, and cannot match\n" if short else ""


def _cells(match: Match | None, least: int) -> list[str]:
    return [f"{match.words:,}", f"{match.times:,}"] if match else [f"< {least}", "–"]


def _shortened(name: str) -> str:
    return name if len(name) <= _SHOWN else f"…{name[1 - _SHOWN :]}"


def _cut(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


def as_data(found: Study) -> dict[str, Any]:
    """All numbers, for a program."""
    return {
        "format": "gpt3_jax memorisation",
        "version": 1,
        "least_words": found.least,
        "corpus": {
            "files": found.corpus.files,
            "fingerprint": found.corpus.fingerprint,
            **found.took.as_data(),
        },
        "samples": records(found),
    }


def records(found: Study) -> list[Mapping[str, Any]]:
    """A record for each sample, for a file of JSON lines."""
    return [
        {
            "sample": each.sample.name,
            "words": each.words,
            "longest": each.longest and dataclasses.asdict(each.longest),
            "verbatim": each.verbatim and dataclasses.asdict(each.verbatim),
            "neighbours": [dataclasses.asdict(neighbour) for neighbour in each.neighbours],
        }
        for each in found.found
    ]


def draw_picture(found: Study, folder: Path) -> Path:
    """Samples by the length of their longest match, in words.

    Raises:
        UserError: matplotlib is not installed.
        RunError: the picture cannot be written.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    longest = max((each.longest.words for each in found.found if each.longest), default=found.least)
    edges = [found.least << n for n in range((longest // found.least).bit_length() + 1)]
    labels = [f"< {found.least}", *(f"{a}–{b - 1}" for a, b in itertools.pairwise(edges))]
    for place, (label, name) in enumerate({"lower case, no punctuation": "longest", "as written": "verbatim"}.items()):
        matches = [getattr(each, name) for each in found.found]
        places = [bisect.bisect_right(edges, match.words) if match else 0 for match in matches]
        counts = [places.count(n) for n in range(len(labels))]
        bars = axes.bar(np.arange(len(labels)) + 0.4 * place - 0.2, counts, 0.4, label=label)
        axes.bar_label(bars, fontsize=8)
    axes.set_xticks(range(len(labels)), labels)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="longest match in the training text, words", ylabel="samples")
    axes.legend(fontsize=8)
    path = folder / PICTURE
    save(figure, str(path))
    return path
