"""`gpt3-jax report`: tables and pictures from plans, beside the papers' own tables."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path
from gpt3_jax.plan.on_cpu import plan_on_cpu

if TYPE_CHECKING:
    from gpt3_jax.plan.formulas import Stage
    from gpt3_jax.plan.receipt import Receipt

_EPILOG = """examples:
  gpt3-jax report paper                                        # the papers' tables, beside ours
  gpt3-jax report published                                    # the roofline against 109 published measurements
  gpt3-jax report zero --topology v5p:2x2x2                    # ZeRO Figure 1: a 1.3B model, stages 0 to 3, compiled
  gpt3-jax report zero --topology h100:1x8 --picture zero.png
  gpt3-jax report scaling                                      # 175B: compile time against depth and devices; 1 / N
  gpt3-jax report remat --topology h100:1x8 --model gpt3-xl    # memory and predicted time of each remat
  gpt3-jax report compare evals/a evals/b                      # two evaluations, item by item
  gpt3-jax report compute runs/a runs/b --picture loss.png     # loss against compute, beside L = 2.57 C^-0.048
  gpt3-jax report in-context --out runs/in-context             # trains a small model that learns from its context
  gpt3-jax report in-context --out runs/in-context --sizes small middle large --seeds 3"""

_OPTIONS = {
    "paper": ("compiled", "devices", "reduce_dtype", "no_cache", "json"),
    "zero": ("topology", "model", "reduce_dtype", "picture", "no_cache", "json"),
    "published": ("json",),
    "scaling": ("compiled", "devices", "json"),
    "remat": ("topology", "model", "no_cache", "json"),
    "compare": ("folders", "json"),
    "compute": ("folders", "picture", "json"),
    "in-context": ("out", "sizes", "seeds", "items", "split", "set", "json"),
}
"""The options of each report."""


def main(argv: list[str]) -> int:
    """Prints the requested report.

    Raises:
        UserError: the arguments are wrong.
        RunError: a compiler or a file failed.
    """
    parser = argparse.ArgumentParser(
        prog="gpt3-jax report",
        description="Prints the papers' tables beside ours, ZeRO's memory read from compiled programs,\n"
        "and how plans compare with published measurements.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        choices=list(_OPTIONS),
        help="paper: ZeRO's Tables 1 and 2 and Figure 1, GPT-3's Tables 2.1 and D.1, the papers' figures beside ours; "
        "zero: compiled model state of stages 0 to 3, beside the formula; published: step times of published runs, "
        "measured and predicted; scaling: 175B's compile time against depth and devices, "
        "and its model state against 1 / N; remat: memory and predicted time with each setting of memory.remat; "
        "compare: two evaluations item by item: the difference, its standard error, a sign test; "
        "compute: loss of runs against training compute, beside the paper's law (GPT-3 Figure 3.1); without a run, "
        "PF-days and the law's loss of the shipped models; "
        "in-context: trains small models on examples of rules, and draws their accuracy on words and rules "
        "never seen against the number of examples (GPT-3 Figure 1.2); what is trained already is not trained again",
    )
    parser.add_argument(
        "folders",
        type=local_path,
        nargs="*",
        metavar="FOLDER",
        help="for compare: two folders written by gpt3-jax evaluate --out, or one that holds two models; for compute: "
        "folders of runs",
    )
    parser.add_argument(
        "--topology", metavar="NAME", help="for zero, remat: the topology to compile for, as in gpt3-jax plan"
    )
    parser.add_argument(
        "--compiled",
        choices=["v5p", "v6e", "h100"],
        help="for paper: also compile the cells of ZeRO's Table 1 for this family of devices, half a minute each; for "
        "scaling: the device family to compile for (default: v5p)",
    )
    parser.add_argument(
        "--devices",
        type=int,
        nargs="+",
        metavar="N",
        help="for --compiled: the rows of the table (default: 64 1024; for scaling 8 to 4096)",
    )
    parser.add_argument(
        "--model",
        metavar="FILE",
        help="for zero and remat: configuration of the model (default: gpt3-xl); for remat several, separated by "
        "commas",
    )
    parser.add_argument(
        "--reduce-dtype",
        choices=["float32", "bfloat16"],
        help="for zero and paper --compiled: the dtype in which gradients are reduced, and from stage 2 on also stored "
        "(default: that of parallel.reduce_dtype, float32)",
    )
    parser.add_argument(
        "--picture",
        type=local_path,
        metavar="FILE",
        help="for zero: also draw bars; for compute: also draw the losses; .png, .svg or .pdf (needs matplotlib)",
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="for zero, remat and paper --compiled: compile even if a cached result exists",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--out",
        type=local_path,
        metavar="DIR",
        help="for in-context: folder of the runs, of in_context.csv and in_context.svg (default: runs/in-context)",
    )
    parser.add_argument(
        "--sizes",
        choices=["small", "middle", "large"],
        nargs="+",
        help="for in-context: sizes of the model (default: middle)",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="for in-context: seeds 0 to N - 1 (default: 1)")
    parser.add_argument(
        "--items", type=int, metavar="N", help="for in-context: questions of each kind of rule (default: 200)"
    )
    parser.add_argument(
        "--split",
        choices=["validation", "test"],
        help="for in-context: words and rules to measure on. Choose settings by validation (default: test)",
    )
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        metavar=("SECTION.KEY", "VALUE"),
        help="for in-context: a setting of the training, as gpt3-jax train takes it; may be given several times",
    )
    args = parser.parse_args(argv)
    _refuse_unheeded(args)
    if args.what == "paper":
        from gpt3_jax.reports import gpt3_tables, zero_tables
        from gpt3_jax.reports.zero_state import how_compiled

        compiled = _compile_table_1(args) if args.compiled else None
        how = how_compiled(_reduce_dtype(args)) if args.compiled else ""
        if args.json:
            print(json.dumps(zero_tables.as_data(compiled) | gpt3_tables.as_data(), indent=1))
            return 0
        tables = [zero_tables.table_1_text(compiled, how), zero_tables.table_2_text(), zero_tables.figure_1_text()]
        print("\n\n".join([*tables, gpt3_tables.table_2_1_text(), gpt3_tables.table_d1_text()]))
        return 0
    if args.what == "published":
        from gpt3_jax.reports import comparison

        print(json.dumps(comparison.as_data(), indent=1) if args.json else comparison.table(), end="")
        return 0
    if args.what == "scaling":
        return _scaling(args)
    if args.what == "compare":
        return _compare(args)
    if args.what == "compute":
        return _compute(args)
    if args.what == "in-context":
        return _in_context(args, argv)
    if not args.topology:
        raise UserError(
            f"report {args.what} needs a topology: --topology v5p:2x2x2; gpt3-jax plan --list-topologies lists them"
        )
    return _zero(args) if args.what == "zero" else _remat(args)


def _compare(args: argparse.Namespace) -> int:
    from gpt3_jax.reports import paired

    if not 1 <= len(args.folders) <= 2:
        raise UserError(f"report compare got {len(args.folders)} folders; expected two, or one that holds two models")
    found = paired.compare(*args.folders, *[None] * (2 - len(args.folders)))
    print(paired.to_json(*found) if args.json else paired.table(*found), end="")
    return 0


def _compute(args: argparse.Namespace) -> int:
    from gpt3_jax.plan.picture import check_picture
    from gpt3_jax.reports import compute, compute_picture

    if args.picture:
        check_picture(args.picture)
        if not args.folders:
            raise UserError("report compute draws the losses of runs; give the folder of one, or leave out --picture")
    runs: dict[str, str] = {}
    for folder in args.folders:
        path = os.path.realpath(folder)
        if path in runs:
            log.info(f"{folder} is the run {runs[path]}, which is shown once")
        else:
            runs[path] = folder
    curves = [compute.read_run(folder) for folder in runs.values()]
    if args.json:
        print(json.dumps([curve.as_data() for curve in curves], indent=1))
    else:
        print(compute.table(curves) if curves else compute.budget_table(), end="")
    if args.picture:
        compute_picture.draw(curves, args.picture)
        log.info(f"wrote {args.picture}")
    return 0


def _scaling(args: argparse.Namespace) -> int:
    plan_on_cpu()
    from gpt3_jax.config import Config
    from gpt3_jax.plan.cache import plan
    from gpt3_jax.plan.topologies import Topology, open_topology
    from gpt3_jax.reports import scaling

    def compiled(config: Config, topology: Topology) -> Receipt:
        log.info(f"compiling {config.model.n_layers} layers for {topology.name}")
        return plan(config, topology, None)[0]  # never from the cache: the report is about its compile time

    sweep = scaling.sweep_of_175b(args.compiled or "v5p")
    found = scaling.measure(sweep, args.devices or tuple(sweep.machines), compiled, open_topology)
    print(json.dumps(scaling.as_data(*found), indent=1) if args.json else scaling.table(sweep, *found), end="")
    return 0


def _refuse_unheeded(args: argparse.Namespace) -> None:
    """Refuses options that this report would ignore."""
    for name, value in vars(args).items():
        option = "FOLDER" if name == "folders" else "--" + name.replace("_", "-")
        if name == "what" or value in (None, False, []):
            continue
        if name not in _OPTIONS[args.what]:
            theirs = " and ".join(f"report {what}" for what, names in _OPTIONS.items() if name in names)
            raise UserError(f"{option} is not an option of report {args.what}, but of {theirs}; leave it out")
        if name in ("devices", "no_cache", "reduce_dtype") and args.what == "paper" and not args.compiled:
            raise UserError(f"{option} is for compiled cells; add --compiled v5p or h100, or leave it out")


def _compile_table_1(args: argparse.Namespace) -> dict[tuple[float, int, Stage], int]:
    """Bytes on one device of the compiled step, for each cell of the selected rows."""
    plan_on_cpu()
    from gpt3_jax.plan.cache import default_cache, plan
    from gpt3_jax.plan.formulas import STAGES
    from gpt3_jax.plan.topologies import open_topology
    from gpt3_jax.reports.zero_state import TABLE_1_TOPOLOGIES, table_1_config
    from gpt3_jax.reports.zero_tables import MODELS

    if args.compiled not in TABLE_1_TOPOLOGIES:
        raise UserError(f"--compiled {args.compiled} has no machines of Table 1's sizes; choose v5p or h100")
    known = TABLE_1_TOPOLOGIES[args.compiled]
    rows = args.devices or [64, 1024]
    if strange := [n for n in rows if n not in known]:
        raise UserError(
            f"--devices {strange[0]} is not a row of Table 1 that can be compiled; choose from "
            f"{', '.join(map(str, known))}"
        )
    result: dict[tuple[float, int, Stage], int] = {}
    for devices in rows:
        topology = open_topology(known[devices])
        for name, parameters in MODELS.items():
            for stage in STAGES[1:]:
                log.info(f"compiling {name}, N {devices}, stage {stage}")
                config = table_1_config(parameters, devices, stage, _reduce_dtype(args))
                receipt, _ = plan(config, topology, None if args.no_cache else default_cache())
                result[parameters, devices, stage] = receipt.memory.total - receipt.memory.code
    return result


def _zero(args: argparse.Namespace) -> int:
    plan_on_cpu()
    from gpt3_jax.config import load_config
    from gpt3_jax.plan.cache import default_cache, plan
    from gpt3_jax.plan.formulas import STAGES
    from gpt3_jax.plan.picture import check_picture, memory_bars
    from gpt3_jax.plan.receipt import receipt_to_json
    from gpt3_jax.plan.topologies import open_topology
    from gpt3_jax.reports.zero_state import N_CTX, stages_text, state_config

    if args.picture:
        check_picture(args.picture)
    topology = open_topology(args.topology)
    source = args.model or "gpt3-xl"
    model = dataclasses.replace(load_config([source]).model, n_ctx=N_CTX)
    receipts = []
    for stage in STAGES:
        log.info(f"compiling stage {stage} for {topology.name}")
        config = state_config(model, len(topology.devices), stage, _reduce_dtype(args))
        receipts.append(plan(config, topology, None if args.no_cache else default_cache())[0])
    if args.json:
        print(json.dumps([receipt_to_json(receipt) for receipt in receipts], indent=1))
    else:
        print(stages_text(source, model, receipts))
    if args.picture:
        memory_bars(receipts, [f"stage {stage}" for stage in STAGES], args.picture)
        log.info(f"wrote {args.picture}")
    return 0


def _in_context(args: argparse.Namespace, argv: list[str]) -> int:
    from gpt3_jax.data.in_context.words import Split
    from gpt3_jax.plan.picture import check_picture
    from gpt3_jax.reports import in_context, in_context_picture

    seeds = 1 if args.seeds is None else args.seeds
    items = in_context.ITEMS if args.items is None else args.items
    for option, value in (("--seeds", seeds), ("--items", items)):
        if value < 1:
            raise UserError(f"{option} is {value}; expected at least 1")
    out = Path(args.out or "runs/in-context")
    overrides = [part for name, value in args.set or () for part in (f"--{name}", value)]
    runs = [
        (size, in_context.config_of(size, seed, out, overrides))
        for seed in range(seeds)
        for size in args.sizes or ["middle"]
    ]
    out.mkdir(parents=True, exist_ok=True)
    split: Split = args.split or "test"
    name = "in_context" if split == "test" else f"in_context-{split}"
    table, picture = out / f"{name}.csv", str(out / f"{name}.svg")
    check_picture(picture)
    rows = [row for size, config in runs for row in in_context.measure(size, config, items, split)]
    table.write_text(in_context.to_csv(rows, in_context.notes(argv)), encoding="utf-8")
    in_context_picture.draw(rows, picture)
    print(json.dumps([vars(row) for row in rows], indent=1) if args.json else in_context.table(rows))
    log.info(f"wrote {table} and {picture}")
    return 0


def _remat(args: argparse.Namespace) -> int:
    plan_on_cpu()
    from gpt3_jax.config import load_config
    from gpt3_jax.model.remat import Remat
    from gpt3_jax.plan.cache import default_cache, plan
    from gpt3_jax.plan.receipt import receipt_to_json
    from gpt3_jax.plan.topologies import open_topology
    from gpt3_jax.reports import remat as report

    topology, model = open_topology(args.topology), args.model or "gpt3-xl"
    receipts: dict[str, Receipt] = {}
    for remat in get_args(Remat):
        log.info(f"compiling remat {remat} for {topology.name}")
        config = load_config(model.split(","), ["--memory.remat", remat])
        receipts[remat] = plan(config, topology, None if args.no_cache else default_cache())[0]
    if args.json:
        print(json.dumps([receipt_to_json(receipt) for receipt in receipts.values()], indent=1))
    else:
        print(report.table(model, receipts))
    return 0


def _reduce_dtype(args: argparse.Namespace) -> str:
    """The requested dtype, or the default of `parallel.reduce_dtype`."""
    from gpt3_jax.config import ParallelConfig

    return args.reduce_dtype or ParallelConfig().reduce_dtype
