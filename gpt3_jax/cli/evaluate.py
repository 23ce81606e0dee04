"""`gpt3-jax evaluate`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from gpt3_jax.cluster.log import log
from gpt3_jax.config import load_devices, split_overrides
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path

if TYPE_CHECKING:
    from gpt3_jax.evals.protocol import Shots

_DESCRIPTION = """Evaluates models by the protocol of the GPT-3 paper (section 2.4): K demonstrations drawn for each
item, multiple choice by log-likelihood per token, free answers by beam search. Prints a table with standard errors
beside the paper's own results (Table H.1) for a model of the same shape."""

_EPILOG = """tasks:
  arithmetic            the paper's ten, generated; or one of them, such as two_digit_addition
  words                 the paper's five, from the machine's list of words or --words FILE; or one, reversed_words
  boolq, race_high, …   the paper's data sets, read from their published files in the folder --data; groups: superglue,
                        anli, arc, race, closed-book, reading, translation; gpt3_jax/evals/README.md lists them
  paper                 all of the paper's tasks whose files are in --data, and the generated ones; all but SAT
                        analogies, which have no published file and are given by analogies:FILE
  PATH/NAME.jsonl[.gz]  contexts and completions as in OpenAI's files; the paper's tasks are known by the file's name
  text:FILE             loss per token, perplexity per word, bits per byte of a text, JSONL, Parquet or token shards
  analogies:FILE        SAT analogies; gpt3_jax/evals/README.md describes the format

examples:
  gpt3-jax evaluate runs/small --tasks arithmetic,words --shots 0,1,10,max --seeds 3 --out evals/small
  gpt3-jax evaluate runs/a runs/b models/gpt2 --tasks text:book.txt --out evals/book
  gpt3-jax evaluate --show reversed_words --words words.txt --tokenizer r50k_base --shots 2

several devices:
  gpt3-jax evaluate runs/xl --parallel.data 2 --parallel.tensor 4 --parallel.stage 3
The options --parallel.… and --distributed.… are those of gpt3-jax train: a mesh over all devices, and the stage by
which it keeps the weights. Without any, the first device is used.

--out holds results.json, items.jsonl (each prompt, answer and score) and answers.jsonl: with it, an interrupted
evaluation goes on where it stopped. gpt3-jax report compare A B compares two such folders item by item."""


def main(argv: list[str]) -> int:
    """Evaluates, or shows a prompt.

    Raises:
        UserError: an unknown task or setting, a task file that is broken, no checkpoint, an option out of range.
        RunError: a checkpoint or file cannot be read or written.
    """
    own, dotted = split_overrides(argv, ("parallel", "distributed"))
    args = _parser().parse_args(own)
    shots = [_shots(each) for each in args.shots.split(",")]
    if args.show:
        return _show(args, shots)
    if not args.models:
        raise UserError("no model to evaluate; give the folder of a run or of a Hugging Face model")
    if args.tokenizer or args.item:
        raise UserError("--tokenizer and --item are for --show; leave them out")
    from gpt3_jax.evals.evaluation import evaluate_subjects, load_tasks
    from gpt3_jax.evals.tasks.select import select

    parallel, distributed = load_devices(dotted)
    tasks = load_tasks(select(args.tasks or ["arithmetic"], args.set, args.data), args.data, args.words, args.limit)
    from gpt3_jax.cluster.agreement import is_lead
    from gpt3_jax.evals.loading import load_each, started

    with started(distributed):
        results = evaluate_subjects(
            load_each(args.models, parallel, args.weights), tasks, shots, args.seeds, args.out, {"command": argv}
        )
        if is_lead():
            print(results.to_json() if args.json else results.table(), end="" if args.json else "\n", flush=True)
    return 0


def _show(args: argparse.Namespace, shots: list[Shots | None]) -> int:
    """Prints prompts exactly; what they are goes to stderr."""
    from gpt3_jax.evals.evaluation import load_tasks
    from gpt3_jax.evals.show import context_of, prepared_prompts
    from gpt3_jax.evals.tasks.select import select

    if args.tasks or len(args.models) > 1:
        raise UserError("--show takes one task, and at most one model for its tokenizer; leave the others out")
    tasks = load_tasks(select([args.show], args.set, args.data), args.data, args.words, args.limit)
    tokenizer, n_ctx = context_of(args.models[0] if args.models else None, args.tokenizer)
    shown = [prepared_prompts(loaded, k, args.item, tokenizer, n_ctx) for loaded in tasks for k in shots]
    if args.json:
        print(json.dumps([each.as_data() for each in shown], indent=1, ensure_ascii=False))
        return 0
    for each in shown:
        log.info(each.about())
        for prompt in each.prompts:
            sys.stdout.write(prompt + "\n")
        sys.stdout.flush()
        log.info(each.asks())
    return 0


def _shots(text: str) -> Shots | None:
    text = text.strip()
    if text == "max":
        return "max"
    if text == "paper":
        return None
    if not text.isdecimal():
        raise UserError(f"--shots {text!r}: expected numbers from 0, max or paper, separated by commas")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax evaluate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "models",
        type=local_path,
        nargs="*",
        metavar="MODEL",
        help="folder of a run (its train.run_dir) or of a Hugging Face model; several are evaluated in turn",
    )
    parser.add_argument(
        "--tasks",
        action="append",
        metavar="NAMES",
        help="tasks, separated by commas; may be given several times (default: arithmetic)",
    )
    parser.add_argument(
        "--shots",
        default="0,1,10",
        metavar="K",
        help="numbers of demonstrations, separated by commas; max: as many as fit; paper: the task's K in Table H.1 "
        "(default: 0,1,10)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="draw demonstrations N times for each item; values are averaged (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate the first N items of each task (default: all)")
    parser.add_argument(
        "--protocol",
        choices=["paper"],
        default="paper",
        help="paper: section 2.4 of the GPT-3 paper (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting that the paper leaves open, of all tasks that have it or of one (TASK.NAME=VALUE); "
        "results.json lists them, each with its default and the reason",
    )
    parser.add_argument(
        "--weights",
        choices=["float32", "bfloat16", "int8"],
        help="as in gpt3-jax generate. float32, bfloat16: weights and arithmetic in this dtype in place of the "
        "model's; int8: matrices rounded to int8, and then to the model's dtype, whose "
        "memory they take: this measures the cost in quality only (default: the model's dtype)",
    )
    parser.add_argument("--words", type=local_path, metavar="FILE", help="list of words for the word tasks, one a line")
    parser.add_argument(
        "--data",
        type=local_path,
        metavar="DIR",
        help="folder of data sets: a task is read from its published files there, at any depth; arithmetic and word "
        "tasks are generated if there are none",
    )
    parser.add_argument(
        "--out",
        type=local_path,
        metavar="DIR",
        help="write results, items and kept answers into this folder (default: write nothing)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--show", metavar="TASK", help="print a prompt of this task as the model gets it, and exit")
    parser.add_argument("--item", metavar="ID", help="for --show: the item (default: the first)")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="for --show without a model: r50k_base, bytes, or a tiktoken rank file (default: r50k_base)",
    )
    return parser
