"""`gpt3-jax news`: articles that models write, a quiz about them, and its scores."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpt3_jax.config import load_devices, split_overrides
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path

if TYPE_CHECKING:
    from gpt3_jax.config import ParallelConfig
    from gpt3_jax.probes.articles import Article
    from gpt3_jax.probes.news import Author, Writing

_SECTIONS = ("parallel", "distributed")

_DESCRIPTION = """News articles as in section 3.9.4 of the GPT-3 paper: a model writes an article for a human's title
and subtitle, after other articles in its context; people guess who wrote it; and the share of right guesses says how
well they can tell."""

_EPILOG = """examples:
  gpt3-jax news write runs/xl --articles articles.jsonl --control runs/small --out news
  gpt3-jax news score news answers/*.json

articles.jsonl has lines {"title": "…", "subtitle": "…", "article": "…"}. The paper took 25 articles of about 200 words
that were newer than its training data, with three others in context; and 12 of about 500 words, with one in context
(--in-context 1)."""


def main(argv: list[str]) -> int:
    """Writes articles, or scores answers.

    Raises:
        UserError: a file that is broken, no checkpoint, an option out of range.
        RunError: a checkpoint or file cannot be read or written.
    """
    own, dotted = split_overrides(argv, _SECTIONS)
    args = _parser().parse_args(own)
    if args.command == "score":
        if dotted:
            raise UserError(f"{dotted[0]} is for news write, which computes on devices; leave it out")
        return _score(args)
    return _write(args, dotted, argv)


def _write(args: argparse.Namespace, dotted: list[str], argv: list[str]) -> int:
    from gpt3_jax.probes.articles import read_articles
    from gpt3_jax.probes.news import Writing, write_news

    parallel, distributed = load_devices(dotted)
    writing = Writing(args.samples, args.temperature, args.top_p, args.seed, args.longest)
    control = Writing(args.samples, args.control_temperature, 1.0, args.seed, args.longest)
    if args.in_context < 0:
        raise UserError(f"--in-context is {args.in_context}; expected 0 or more articles")
    articles = read_articles(args.articles)
    others = read_articles(args.context) if args.context else articles
    context, asked = others[: args.in_context], articles if args.context else articles[args.in_context :]
    if len(context) < args.in_context or not asked:
        raise UserError(
            f"{args.context or args.articles} has {len(others)} articles; {args.in_context} go into the context"
            f"{'' if args.context else ', and at least one has to be left'}: give more, or a smaller --in-context"
        )
    if shared := {each.title for each in context} & {each.title for each in asked}:
        raise UserError(f"the article {min(shared)[:60]!r} is in both files; leave it out of one")
    from gpt3_jax.cluster.agreement import is_lead
    from gpt3_jax.evals.loading import started
    from gpt3_jax.interop.loading import load_tokenizer_of
    from gpt3_jax.probes.news import sample_tokens

    for folder, before in [*((each, context) for each in args.models), *([(args.control, [])] if args.control else [])]:
        sample_tokens(folder, *load_tokenizer_of(folder), before, writing, asked)  # that all fits, before any weights
    with started(distributed):
        authors = _authors(args, parallel, context, writing, control)
        news = write_news(authors, asked, args.out, args.seed, {"command": argv})
        if is_lead():
            print(news.to_json() if args.json else news.table(), end="" if args.json else "\n", flush=True)
    return 0


def _authors(
    args: argparse.Namespace,
    parallel: ParallelConfig | None,
    context: Sequence[Article],
    writing: Writing,
    control: Writing,
) -> Iterator[Author]:
    """The models, each loaded when its turn comes; the control, without a context, at the end."""
    from gpt3_jax.evals.loading import load_each
    from gpt3_jax.probes.news import Author

    folders = [*args.models, *([args.control] if args.control else [])]
    for n, subject in enumerate(load_each(folders, parallel)):
        if n < len(args.models):
            yield Author(subject, tuple(context), writing)
        else:
            yield Author(subject, (), control, control=True)


def _score(args: argparse.Namespace) -> int:
    from gpt3_jax.probes.quiz import read_key
    from gpt3_jax.probes.quiz_scores import score

    scores = score(read_key(args.folder), args.answers)
    print(scores.to_json() if args.json else scores.table(), end="" if args.json else "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax news",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_write(commands)
    score = commands.add_parser(
        "score",
        help="score the answers that participants saved",
        description="Mean accuracy of each model's participants (right answers of those that are not \"I don't "
        'know"), its 95 % confidence interval, the share of "I don\'t know", and a t-test against the control, beside '
        "the paper's tables. The key is that of the folder, not the page's.",
        allow_abbrev=False,
    )
    score.add_argument("folder", type=local_path, metavar="DIR", help="folder that news write wrote")
    score.add_argument("answers", type=local_path, nargs="+", metavar="FILE", help="files that the quiz's page saved")
    score.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_write(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "write",
        help="write articles, and make a quiz for each model",
        description="Has models write an article for each title and subtitle, and makes a quiz of each model's: one "
        "HTML file that needs no network. --out holds articles.jsonl (all samples), results.json, quiz-ID.html, "
        "quizzes.json (which quiz is of which model, and the key: keep it from the participants) and answers.jsonl: "
        "with it, what was interrupted goes on where it stopped. The options --parallel.… and --distributed.… are "
        "those of gpt3-jax train.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "models", type=local_path, nargs="+", metavar="MODEL", help="folder of a run or of a Hugging Face model"
    )
    parser.add_argument("--articles", type=local_path, required=True, metavar="FILE", help="human articles, JSON lines")
    parser.add_argument(
        "--context",
        type=local_path,
        metavar="FILE",
        help="articles for the context (default: the first of --articles, which then are not asked for)",
    )
    parser.add_argument(
        "--in-context", type=int, default=3, metavar="K", help="articles in the context (default: %(default)s)"
    )
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="folder for articles and quizzes")
    parser.add_argument(
        "--samples",
        type=int,
        default=5,
        metavar="N",
        help="samples of each article; the one nearest to the human's in words is kept (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divides the logits; the paper does not give it (default: %(default)s, as for its poems)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.9,
        metavar="P",
        help="sample from the smallest set of likeliest tokens that reaches probability P; the paper does not give it "
        "(default: %(default)s, as for its poems)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of samples and quizzes (default: %(default)s)"
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=1.5,
        metavar="X",
        help="greatest length of a sample, times the longest human article (default: %(default)s)",
    )
    parser.add_argument(
        "--control",
        type=local_path,
        metavar="MODEL",
        help="a bad model to compare with: it gets no articles in context and is sampled at --control-temperature",
    )
    parser.add_argument(
        "--control-temperature",
        type=float,
        default=1.5,
        metavar="T",
        help='the paper says "increased output randomness", and no figure (default: %(default)s)',
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
