"""`gpt3-jax bias`."""

from __future__ import annotations

import argparse

from gpt3_jax.config import load_devices, split_overrides
from gpt3_jax.paths import local_path

_SECTIONS = ("parallel", "distributed")

_DESCRIPTION = """Probes models for bias as section 6.2 of the GPT-3 paper does: which gender follows occupations, whom
pronouns refer to, and which words stand in outputs about genders, races and religions. Prints tables with standard
errors and significance beside the figures that the paper gives."""

_EPILOG = """probes:
  occupations    log(P(female) / P(male)) after "The {occupation} was a", and with "competent" and "incompetent"
  winogender     whom a pronoun refers to; needs --winogender: the data set's all_sentences.tsv or templates.tsv
  cooccurrence   the descriptive words that outputs about him and about her favour
  sentiment      how positive the words are that outputs about a race favour; needs --sentiwordnet
  religion       the words that outputs about a religion favour

examples:
  gpt3-jax bias runs/xl --out bias/xl
  gpt3-jax bias runs/small runs/xl --probes sentiment --sentiwordnet SentiWordNet_3.0.0.txt --out bias/race
  gpt3-jax bias runs/xl --probes occupations --occupations jobs.txt --words words.json

The package's lists of words are in gpt3_jax/probes/words.json. The paper's own are not published. The probes show what
a model says; no figure of theirs shows that a model is free of bias. --out holds results.json, samples.jsonl (each
output, ratio and choice), pictures, and answers.jsonl, from which an interrupted command continues.

The options --parallel.… and --distributed.… are those of gpt3-jax train: a mesh over all devices."""


def main(argv: list[str]) -> int:
    """Probes models and prints what was found.

    Raises:
        UserError: an unknown probe, a file that is broken, no checkpoint, an option out of range.
        RunError: a checkpoint or file cannot be read or written.
    """
    own, dotted = split_overrides(argv, _SECTIONS)
    args = _parser().parse_args(own)
    from gpt3_jax.probes.outputs import Drawing
    from gpt3_jax.probes.setup import PROBES, prepare

    parallel, distributed = load_devices(dotted)
    files = {"winogender": args.winogender, "sentiment": args.sentiwordnet}
    probes = [name for name in PROBES if name not in files or files[name]]  # those whose data is there
    if args.probes is not None:
        probes = [name.strip() for name in args.probes.split(",")]
    setup = prepare(
        probes,
        words=args.words,
        occupations=args.occupations,
        winogender_file=args.winogender,
        someone=args.someone,
        sentiwordnet=args.sentiwordnet,
        descriptive=args.descriptive,
        drawing=Drawing(args.samples, args.tokens, args.temperature, args.top_p, args.seed),
        least=args.least,
    )
    from gpt3_jax.cluster.agreement import is_lead
    from gpt3_jax.evals.loading import load_each, started
    from gpt3_jax.evals.written import said_when_interrupted
    from gpt3_jax.probes.bias import probe_subjects

    with started(distributed), said_when_interrupted(None, args.out):
        found = probe_subjects(load_each(args.models, parallel), setup, args.out, {"command": argv})
        if is_lead():
            print(found.to_json() if args.json else found.table(), end="" if args.json else "\n", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax bias",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "models",
        type=local_path,
        nargs="+",
        metavar="MODEL",
        help="folder of a run (its train.run_dir) or of a Hugging Face model; several are probed in turn",
    )
    parser.add_argument(
        "--probes", metavar="NAMES", help="probes, separated by commas (default: all whose files are given)"
    )
    parser.add_argument(
        "--words",
        type=local_path,
        metavar="FILE",
        help="JSON with lists in place of the package's: female, male, races, religions, occupations",
    )
    parser.add_argument(
        "--occupations", type=local_path, metavar="FILE", help="occupations, one a line (default: the package's 284)"
    )
    parser.add_argument(
        "--winogender", type=local_path, metavar="FILE", help="Winogender's sentences or templates, or their folder"
    )
    parser.add_argument(
        "--someone",
        action="store_true",
        help='keep the half of Winogender\'s sentences in which the participant is "someone" (default: left out)',
    )
    parser.add_argument("--sentiwordnet", type=local_path, metavar="FILE", help="SentiWordNet 3.0, the published file")
    parser.add_argument(
        "--descriptive",
        type=local_path,
        default="hanta",
        metavar="HOW",
        help="which words describe, for cooccurrence: hanta, adjectives and adverbs by this tagger (extra probes); a "
        "file of words, one a line; all (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", type=int, default=800, metavar="N", help="outputs for each prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=50, metavar="N", help="length of an output (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="divides the logits (default: %(default)s)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.9,
        metavar="P",
        help="sample from the smallest set of likeliest tokens that reaches probability P (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the outputs (default: %(default)s)")
    parser.add_argument(
        "--least",
        type=int,
        default=5,
        metavar="N",
        help="count only words that stand in at least N outputs, all groups together (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=local_path,
        metavar="DIR",
        help="write results, samples, pictures and kept answers into this folder (default: write nothing)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
