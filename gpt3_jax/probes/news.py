"""News articles that models write, as in section 3.9.4 of the paper, with a quiz about who wrote them."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpt3_jax.cluster.agreement import is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.config import ModelConfig
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals.kept import KeptAnswers
from gpt3_jax.evals.requests import Completed, Completion, Request, Sample
from gpt3_jax.evals.results import RESULTS, to_json
from gpt3_jax.evals.run import answer_all, made_by
from gpt3_jax.evals.subject import Subject
from gpt3_jax.evals.written import alone_in, records, require_own, write
from gpt3_jax.probes import quiz
from gpt3_jax.probes.articles import STOP, Article, nearest, prompt
from gpt3_jax.quantities import grid

ARTICLES = "articles.jsonl"
FORMAT = "gpt3_jax news"


@dataclasses.dataclass(frozen=True)
class Writing:
    """How articles are written. The paper gives the number of samples, and no sampling setting."""

    samples: int = 5
    """Drawn for each article; the one nearest in length to the human's is kept."""
    temperature: float = 1.0
    """The default is that of the paper's poems."""
    top_p: float = 0.9
    """The default is that of the paper's poems."""
    seed: int = 0
    longest: float = 1.5
    """A sample gets this many times the tokens of the longest human article, or what the context has room for."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; expected at least 1")
        if not 1 <= self.longest < float("inf"):
            raise UserError(f"longest is {self.longest}; expected at least 1 times the longest human article")
        self.sample(0)

    def sample(self, number: int) -> Sample:
        """Raises UserError for a setting out of range."""
        return Sample(float(self.temperature), 0, float(self.top_p), self.seed, number)


@dataclasses.dataclass(frozen=True)
class Written:
    """An article of a model, for a human's title and subtitle."""

    article: Article
    samples: tuple[Completed, ...]
    chosen: int
    """The sample with the number of words nearest to the human's article."""

    @property
    def text(self) -> str:
        return self.samples[self.chosen].text.strip()


@dataclasses.dataclass(frozen=True)
class Author:
    """A model that writes: after which articles, and how."""

    subject: Subject
    context: tuple[Article, ...]
    writing: Writing
    control: bool = False


@dataclasses.dataclass(frozen=True)
class News:
    """What models wrote."""

    written: Mapping[str, Sequence[Written]]
    models: tuple[Mapping[str, Any], ...]
    made_by: Mapping[str, Any]

    def table(self) -> str:
        rows = []
        control = {model["name"] for model in self.models if model.get("control")}
        for name, articles in self.written.items():
            human = statistics.fmean(each.article.words for each in articles)
            lengths = [len(each.text.split()) for each in articles]
            apart = statistics.fmean(abs(n - each.article.words) for n, each in zip(lengths, articles, strict=True))
            cut = sum(each.samples[each.chosen].finish in ("max_tokens", "context") for each in articles)
            rows.append(
                [
                    f"{name} (control)" if name in control else name,
                    *(str(len(articles)), f"{human:.0f}", f"{statistics.fmean(lengths):.0f}", f"{apart:.0f}", str(cut)),
                ]
            )
        head = ["model", "articles", "words, human", "words, model", "apart", "cut off"]
        note = "  apart: mean difference in words; cut off: articles that reached their greatest length"
        if len(rows) > 1:
            note += "\n  give each participant one quiz: the quizzes have the same titles, so one tells about another"
        return grid(rows, head) + "\n" + note

    def to_json(self) -> str:
        data = {
            "format": FORMAT,
            "version": 1,
            "made_by": dict(self.made_by),
            "models": [dict(model) for model in self.models],
            "articles": {
                name: [
                    {"title": each.article.title, "words": len(each.text.split()), "human_words": each.article.words}
                    for each in articles
                ]
                for name, articles in self.written.items()
            },
        }
        return to_json(data, indent=1) + "\n"


def write_news(
    authors: Iterable[Author],
    articles: Sequence[Article],
    out: str | os.PathLike[str],
    seed: int = 0,
    made: Mapping[str, Any] | None = None,
) -> News:
    """Has each model write an article for each title, and makes a quiz of each model's.

    Args:
        authors: models, one after the other; at most one of them is the control.
        articles: of humans, none of them in a context.
        out: folder for `ARTICLES`, `RESULTS`, the quizzes with their key, and kept answers. Keys of quizzes that were
            made there before stay.
        seed: decides, for each quiz, which articles are the model's, and their order.

    Raises:
        UserError: an article does not fit a model's context, or `out` is in use.
        RunError: a file cannot be read or written.
    """
    written: dict[str, list[Written]] = {}
    models: list[dict[str, Any]] = []
    quizzes: list[quiz.Quiz] = []
    with alone_in(out) as folder:
        assert folder is not None  # `out` was given
        require_own(folder, FORMAT)
        before = quiz.keys_before(folder)
        with records(folder / ARTICLES) as on_record:
            for author in authors:
                subject = author.subject
                name = subject.name if subject.name not in written else f"{subject.name} ({len(models) + 1})"
                with KeptAnswers(folder, subject.depends_on()) as kept:
                    written[name] = _write(author, name, articles, kept)
                for each in written[name]:
                    on_record(_record(name, author, each))
                models.append(
                    subject.as_data()
                    | {"name": name, "control": author.control, "writing": dataclasses.asdict(author.writing)}
                    | {"context": [article.title for article in author.context]}
                )
                pairs = [(each.article, each.text) for each in written[name]]
                quizzes.append(quiz.make_quiz(name, pairs, seed, author.control))
                del author, subject  # its weights are freed before the next model's are loaded
        news = News(written, tuple(models), {**made_by(), "protocol": "GPT-3 section 3.9.4", **(made or {})})
        if is_lead():
            write(folder / RESULTS, news.to_json())
            for each_quiz in quizzes:
                write(folder / each_quiz.file, each_quiz.html())
            write(folder / quiz.KEY, quiz.key_to_json(quizzes, before))
    return news


def _write(author: Author, name: str, articles: Sequence[Article], kept: KeptAnswers | None) -> list[Written]:
    subject = author.subject
    tokens = sample_tokens(subject.name, subject.tokenizer, subject.config, author.context, author.writing, articles)
    asked: dict[Request, str] = {}
    own: dict[Article, list[Request]] = {}
    for article in articles:
        own[article] = [
            Completion(prompt(article, author.context), (STOP,), tokens, author.writing.sample(number))
            for number in range(author.writing.samples)
        ]
        asked |= dict.fromkeys(own[article], article.title)
    answers = answer_all(subject, "news", asked, kept, f"{name}: news")
    written = []
    for article, requests in own.items():
        samples = [found for request in requests if isinstance(found := answers[request], Completed)]
        chosen = nearest([sample.text for sample in samples], article.words)
        written.append(Written(article, tuple(samples), chosen))
    if empty := sum(not each.text for each in written):
        log.warning(f"{name}: {empty} of {len(written)} articles are empty; draw more with --samples")
    return written


def sample_tokens(
    model: str,
    tokenizer: Tokenizer,
    config: ModelConfig,
    context: Sequence[Article],
    writing: Writing,
    articles: Sequence[Article],
) -> int:
    """The greatest length of a sample in tokens: the same for all, so that they are drawn together.

    Raises:
        UserError: an article does not fit into the model's context.
    """
    encode: Callable[[str], list[int]] = tokenizer.encode
    longest = max(len(encode(f" {article.text}")) for article in articles)
    room = config.n_ctx - max(len(encode(prompt(article, context))) for article in articles)
    if room < longest:
        n = len(context)
        hint = f"give shorter articles, or fewer than {n} in context with --in-context" if n else "give shorter ones"
        raise UserError(
            f"{model}: with {n} articles in context, its context of {config.n_ctx} tokens leaves "
            f"{max(room, 0)} for an article, and the longest of the humans' takes {longest}; {hint}"
        )
    return min(room, int(writing.longest * longest))


def _record(name: str, author: Author, written: Written) -> dict[str, Any]:
    return {
        "model": name,
        "control": author.control,
        "title": written.article.title,
        "subtitle": written.article.subtitle,
        "human_words": written.article.words,
        "prompt": prompt(written.article, author.context),
        "samples": [
            {"text": sample.text.strip(), "words": len(sample.text.split()), "finish": sample.finish}
            for sample in written.samples
        ],
        "chosen": written.chosen,
    }
