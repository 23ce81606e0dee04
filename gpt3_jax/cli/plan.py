"""`gpt3-jax plan`: what a configuration needs and costs on hardware that is not attached."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from typing import TYPE_CHECKING

from gpt3_jax.cluster.log import log
from gpt3_jax.config import Config, load_config
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path
from gpt3_jax.plan.on_cpu import plan_on_cpu

if TYPE_CHECKING:
    from pathlib import Path

    from gpt3_jax.plan.candidates import Candidate
    from gpt3_jax.plan.receipt import Receipt
    from gpt3_jax.plan.topologies import Topology

_DESCRIPTION = """Compiles the training step of a configuration for a TPU or GPU topology, on any machine with a CPU;
the hardware need not be attached. Prints what the compiled program needs and costs: memory per device by purpose,
arithmetic, traffic over each mesh axis beside ZeRO's formulas, and the time that a roofline predicts. With --for, the
same for the programs of generation (prompts read, one token appended) or evaluation (log-likelihoods)."""

_EPILOG = """examples:
  gpt3-jax plan --config gpt3-175b --config mesh-v5p-512 --topology v5p:8x8x8
  gpt3-jax plan --config gpt3-xl --topology h100:1x8 --parallel.stage 2 --memory.microbatch 8
  gpt3-jax plan --config gpt3-6.7b --topology v5e:16x16 --search --out 6.7b-v5e.yaml
  gpt3-jax plan --config gpt3-175b --topology h100:1x8 --parallel.tensor 8 --for generate

TPU topologies need libtpu (pip install libtpu), GPU topologies JAX's CUDA plugin (pip install 'jax[cuda13]'); neither
needs an accelerator. exit codes: 0 it fits; 1 it does not fit, or the compiler failed; 2 what was asked for is wrong"""


def main(argv: list[str]) -> int:
    """Prints the receipt and returns 0 if the configuration fits.

    Raises:
        UserError: the arguments are wrong.
        RunError: the compiler failed for a reason other than memory.
    """
    args, overrides = _parser().parse_known_args(argv)
    if args.list_topologies:
        if others := [word for word in argv if word != "--list-topologies"]:
            raise UserError(f"--list-topologies takes no other option; leave out {others[0]}")
        print(_families())
        return 0
    if args.keep is not None and not args.search:
        raise UserError(f"--keep {args.keep} is for a search; add --search, or leave it out")
    if args.minutes is not None and not args.search:
        raise UserError(f"--minutes {args.minutes:g} is for a search; add --search, or leave it out")
    if args.out is not None:
        if not args.search:
            raise UserError(f"--out {args.out} is for a search; add --search, or leave it out")
        from gpt3_jax.plan.found import check_file

        check_file(args.out)
    _check_use(args)
    if not args.config:
        raise UserError("plan needs a configuration: --config gpt3-xl, or the path of a YAML file")
    if not args.topology:
        raise UserError("plan needs a topology: --topology v5p:8x8x8; gpt3-jax plan --list-topologies lists them")
    plan_on_cpu()
    config = load_config(args.config, overrides)
    from gpt3_jax.plan.cache import default_cache, plan
    from gpt3_jax.plan.receipt import receipt_to_json
    from gpt3_jax.plan.table import render
    from gpt3_jax.plan.topologies import open_topology
    from gpt3_jax.train.schedule import batch_schedule, deviations

    if args.picture:
        from gpt3_jax.plan.picture import check_picture

        check_picture(args.picture)
    keep = 3 if args.keep is None else args.keep
    if keep < 1:
        raise UserError(f"--keep is {keep}; expected at least 1")
    if args.minutes is not None and not args.minutes > 0:
        raise UserError(f"--minutes is {args.minutes:g}; expected more than 0")
    topology = open_topology(args.topology, args.slices)
    cache = None if args.no_cache else default_cache()
    if args.use != "train":
        return _inference(config, topology, args, cache)
    if args.search and args.picture:
        raise UserError("--picture draws one plan; leave out --search, or plan what it found with --picture")
    if args.search:
        return _search(config, topology, keep, cache, args, argv)
    log.info(f"compiling for {topology.name}, {len(topology.devices):,} devices")
    receipt, kept = plan(config, topology, cache)
    shards = receipt.mesh.batch_shards
    for deviation in deviations(config, batch_schedule(config, shards), shards):
        log.info(deviation)
    if kept:
        log.info("using the cached plan; --no-cache compiles again")
    if args.json:
        print(json.dumps(receipt_to_json(receipt), indent=1))
    else:
        print(render(receipt), end="")
    if args.picture:
        from gpt3_jax.plan.picture import memory_bars

        memory_bars([receipt], [f"{receipt.topology['name']}\nstage {receipt.settings['stage']}"], args.picture)
        log.info(f"wrote {args.picture}")
    if receipt.memory.fits is False and not args.json:
        _suggest(config, receipt, topology, cache)
    return 1 if receipt.memory.fits is False else 0


def _check_use(args: argparse.Namespace) -> None:
    """Raises UserError for an option of another use."""
    if args.use == "train":
        for option in ("rows", "prompt_tokens", "new_tokens", "beams", "weights"):
            if (value := getattr(args, option)) is not None:
                raise UserError(f"--{option.replace('_', '-')} {value} is for --for generate or --for evaluate")
        return
    if args.use == "generate" and args.weights == "float32":
        raise UserError(
            "--weights float32 is for --for evaluate; generation has its weights in model.dtype (--model.dtype "
            "float32) or in int8"
        )
    if args.use == "evaluate" and args.weights == "int8":
        raise UserError("--weights int8 is for --for generate; evaluation has its weights in float32 or compute")
    for option in ("search", "picture"):
        if getattr(args, option):
            raise UserError(f"--{option} is for training; leave it out, or --for {args.use}")


def _inference(config: Config, topology: Topology, args: argparse.Namespace, cache: Path | None) -> int:
    from gpt3_jax.config import to_yaml
    from gpt3_jax.parallel.mesh import make_mesh
    from gpt3_jax.plan.cache import kept
    from gpt3_jax.plan.inference import Weights, inference_from_json, inference_to_json, plan_inference
    from gpt3_jax.plan.inference_batch import batch_of
    from gpt3_jax.plan.inference_table import render_inference

    mesh = make_mesh(config.parallel, topology.devices)
    batch = batch_of(config, mesh, args.use, args.rows, args.prompt_tokens, args.new_tokens, args.beams)
    weights: Weights = args.weights or "compute"
    log.info(f"compiling for {topology.name}, {len(topology.devices):,} devices")
    receipt, from_cache = kept(
        [to_yaml(config), topology.name, args.use, dataclasses.asdict(batch), weights],
        topology,
        cache,
        lambda: plan_inference(config, topology, args.use, batch, weights),
        inference_to_json,
        inference_from_json,
    )
    if from_cache:
        log.info("using the cached plan; --no-cache compiles again")
    if args.json:
        print(json.dumps(inference_to_json(receipt), indent=1))
    else:
        print(render_inference(receipt), end="")
    return 1 if receipt.fits is False else 0


def _search(
    config: Config, topology: Topology, keep: int, cache: Path | None, args: argparse.Namespace, argv: list[str]
) -> int:
    from gpt3_jax.plan.found import write_configuration
    from gpt3_jax.plan.receipt import receipt_to_json
    from gpt3_jax.plan.search import SECONDS, search

    seconds = SECONDS if args.minutes is None else 60 * args.minutes
    found = search(config, topology, keep, cache, seconds)
    if args.out is not None and found:
        best, receipt = found[0]
        write_configuration(args.out, best.config, receipt, shlex.join(["gpt3-jax", "plan", *argv]))
        log.info(f"wrote {args.out}; train with it: gpt3-jax train --config {shlex.quote(args.out)}")
    elif args.out is not None:
        log.warning(f"{args.out} is not written: no configuration that fits was found")
    if args.json:
        print(json.dumps([{"settings": c.settings, "receipt": receipt_to_json(r)} for c, r in found], indent=1))
    elif found:
        print(_ranking(found))
    return 0 if found else 1


def _suggest(config: Config, receipt: Receipt, topology: Topology, cache: Path | None) -> None:
    from gpt3_jax.plan.candidates import candidates
    from gpt3_jax.plan.search import nearest

    if topology.usable is None:  # the compiler refused the program, so nothing can be ranked
        return
    if not candidates(config, topology):
        print("\nBy arithmetic no mesh, stage, remat and microbatch fits; take more devices or a smaller model")
        return
    log.info("looking for the nearest configurations that fit")
    found = nearest(config, receipt.mesh, topology, 2, cache)
    if found:
        print("\nNearest configurations that fit, each compiled:\n" + _ranking(found))
    else:
        print("\nOf the nearest, none that was compiled fits; gpt3-jax plan --search looks further")


def _ranking(found: list[tuple[Candidate, Receipt]]) -> str:
    from gpt3_jax.plan.table import host_limit
    from gpt3_jax.quantities import count, duration, grid, size

    offload = any(r.memory.host for _, r in found)
    rows = [
        (
            c.options,
            size(r.memory.total),
            *((size(r.memory.host),) if offload else ()),
            duration(r.prediction.step_seconds) if r.prediction else "",
            duration(r.scheduled_seconds) if r.scheduled_seconds else "",
            count(r.prediction.tokens_per_second) if r.prediction else "",
            f"{r.prediction.mfu:.1%}" if r.prediction else "",
        )
        for c, r in found
    ]
    of_host = ("of the host",) if offload else ()
    table = grid(rows, ("options", "memory", *of_host, "step", "as scheduled", "tokens/s", "MFU"))
    limits = [
        f"  microbatch {c.config.memory.microbatch}, offload: {size(r.memory.host)} of the host for each device{limit}"
        for c, r in found
        if r.memory.host and (limit := host_limit(r))
    ]
    return "\n".join([table, *limits])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax plan",
        usage="gpt3-jax plan --config FILE [--config FILE ...] --topology NAME [options] [--SECTION.KEY VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=local_path, action="append", metavar="FILE", help="configuration, as in train; later ones win"
    )
    parser.add_argument(
        "--topology", metavar="NAME", help="hardware: v5p:8x8x8 (chips of a torus), h100:16x8 (nodes × GPUs)"
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="TPU slices of that size (default: 1)")
    parser.add_argument(
        "--list-topologies", action="store_true", help="print the topology families with examples, and exit"
    )
    parser.add_argument(
        "--for",
        dest="use",
        choices=("train", "evaluate", "generate"),
        default="train",
        help="program to plan. train: the training step. evaluate: log-likelihoods, with parameters sharded as the "
        "stage shards them; then beam search for free answers, with the same weights split over tensor. generate: "
        "reading prompts and appending tokens, with weights split over tensor (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="for --for generate and evaluate: rows that each data shard computes at once (default: 16 to generate; to "
        "evaluate, as many as make 16,384 tokens)",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help="for --for generate and evaluate: tokens of each row (default: half the context to generate, the whole to "
        "evaluate)",
    )
    parser.add_argument(
        "--new-tokens",
        type=int,
        metavar="N",
        help="for --for generate: tokens that the cache has room for after the prompt (default: the rest of the "
        "context)",
    )
    parser.add_argument(
        "--beams",
        type=int,
        metavar="N",
        help="for --for generate: beam search with N hypotheses (evaluate decodes free answers with 4). --rows then "
        "counts hypotheses and must be a multiple of N (default: no beam search, as in gpt3-jax generate)",
    )
    parser.add_argument(
        "--weights",
        choices=("float32", "compute", "int8"),
        help="dtype of the weights; compute, the default: model.dtype. For --for evaluate also float32, as a training "
        "run that evaluates tasks keeps them: twice the memory of bf16, the same results. For --for generate also "
        "int8, for the matrices",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="find the fastest mesh, ZeRO stage, remat and microbatch that fit: order all valid combinations by "
        "estimates, and compile the best",
    )
    parser.add_argument(
        "--keep", type=int, metavar="N", help="for --search: number of configurations to find (default: 3)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="for --search: time limit. The search says what it had no time to compile (default: 2)",
    )
    parser.add_argument(
        "--out",
        type=local_path,
        metavar="FILE",
        help="for --search: write the best as YAML that train --config FILE takes (default: only print)",
    )
    parser.add_argument(
        "--picture",
        type=local_path,
        metavar="FILE",
        help="also draw the memory as bars, .png, .svg or .pdf (needs matplotlib)",
    )
    parser.add_argument("--no-cache", action="store_true", help="compile even if the same plan was made before")
    parser.add_argument("--json", action="store_true", help="print the receipt as JSON")
    return parser


def _families() -> str:
    from gpt3_jax.plan.topologies import families

    lines = ["FAMILY:SIZE; other sizes of the same form work too"]
    lines += [f"  {family:<6} {'  '.join(examples)}" for family, examples in families().items()]
    return "\n".join(lines)
