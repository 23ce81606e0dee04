"""`gpt3-jax contamination`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path
from gpt3_jax.reports.corpus_options import add_options, corpus_of, progress_bar

if TYPE_CHECKING:
    from gpt3_jax.reports.contamination_scores import Scores

_DESCRIPTION = """Finds the items of tasks that share an N-gram of words with the training text, by the rule of the
GPT-3 paper (section 4, appendix C), and, with the results of an evaluation, the scores of all, clean and dirty items
beside the paper's Table C.1."""

_EPILOG = """examples:
  gpt3-jax contamination data/train --tasks arithmetic,words --out contamination/small
  gpt3-jax contamination data/train --tasks words --results evals/small --out contamination/small
  gpt3-jax contamination 'corpus/*.jsonl.zst' --tasks text:book.txt,analogies:sat.jsonl --json

The rule: N is the 5th percentile of the items' lengths in words, at least 8 (but for the generated tasks) and at most
13; words are lower case without punctuation; an item is dirty if any of its N-grams is in any document.

--out holds contamination.json, contamination.jsonl (each item, with places) and hits.npz: what the training text
holds, so that the same items need not be looked for again, and an interrupted search goes on where it stopped."""


def main(argv: list[str]) -> int:
    """Prints how much of each task is contaminated.

    Raises:
        UserError: an unknown task or setting, a file that is not there or cannot be read as configured.
        RunError: a file is damaged or cannot be written.
    """
    args = _parser().parse_args(argv)
    from gpt3_jax.evals import written
    from gpt3_jax.evals.evaluation import load_tasks
    from gpt3_jax.evals.results import to_json
    from gpt3_jax.evals.tasks.select import select
    from gpt3_jax.reports import contamination, contamination_scores

    settings = contamination.Settings(args.match, args.short, args.n, args.punctuation, args.ignore_above)
    corpus = corpus_of(args)
    tasks = load_tasks(select(args.tasks or ["words"], args.set, args.data), args.data, args.words, args.limit)
    kept = "what was found so far, in hits.npz"
    with written.said_when_interrupted(kept, args.out), written.alone_in(args.out) as folder:
        with progress_bar() as on_progress:
            found = contamination.study(tasks, corpus, settings, args.workers, folder, on_progress)
        contamination.require_compared(found)
        scored = contamination_scores.scores(found, args.results) if args.results else []
        data = contamination_scores.as_data(found, scored) | {"command": argv}
        if folder:
            written.write_lines(folder / "contamination.jsonl", contamination.records(found))
            written.write_json(folder / "contamination.json", data)
            _draw(folder, scored)
    text = to_json(data, indent=1) + "\n" if args.json else contamination_scores.table(found, scored)
    print(text, end="", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax contamination",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    parser.add_argument(
        "--tasks",
        action="append",
        metavar="NAMES",
        help="tasks as for gpt3-jax evaluate, separated by commas; may be given several times (default: words)",
    )
    parser.add_argument("--data", type=local_path, metavar="DIR", help="folder of data sets, as for evaluate")
    parser.add_argument("--words", type=local_path, metavar="FILE", help="list of words, as for evaluate")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N items of each task (default: all)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of tasks, as for evaluate"
    )
    parser.add_argument(
        "--results",
        type=local_path,
        metavar="DIR",
        help="folder of gpt3-jax evaluate --out: also give the scores of all, clean and dirty items",
    )
    parser.add_argument(
        "--match",
        choices=("example", "context", "completion"),
        default="example",
        help="what of an item is compared: context and right completion, or one of the two (default: %(default)s)",
    )
    parser.add_argument(
        "--short",
        choices=("clean", "whole"),
        default="clean",
        help="items of fewer than N words: clean, as in appendix C, or compared as a whole, as in section 4 (default: "
        "%(default)s)",
    )
    parser.add_argument("--n", type=int, metavar="N", help="words of an N-gram (default: by the paper's rule)")
    parser.add_argument(
        "--punctuation",
        choices=("separates", "deleted"),
        default="separates",
        help="whether punctuation separates words, as the paper's N for Symbol Insertion implies, or is deleted "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--ignore-above",
        type=int,
        metavar="N",
        help="ignore N-grams that more than N documents hold; 10 in the paper's filter of its training text (default: "
        "ignore none, as in its study)",
    )
    parser.add_argument("--out", type=local_path, metavar="DIR", help="folder for the results (default: write nothing)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _draw(folder: Path, scored: Sequence[Scores]) -> None:
    from gpt3_jax.reports import contamination_picture

    try:
        if path := contamination_picture.draw(scored, folder):
            log.info(f"wrote {path}")
    except UserError as error:  # matplotlib is optional
        log.info(f"no picture: {error}")
