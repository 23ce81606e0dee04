"""`gpt3-jax plan`: what a configuration needs and costs on a machine that need not be there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from gpt3_jax.config import load_config
from gpt3_jax.errors import UserError

if TYPE_CHECKING:
    from gpt3_jax.plan.receipt import Receipt

_DESCRIPTION = """Compiles the training step of a configuration for a TPU or GPU topology that need not be attached, on
any CPU machine, and says what the compiled program needs and costs: memory of a device by purpose, arithmetic,
traffic over each mesh axis beside ZeRO's formulas, and the time that a roofline predicts."""

_EPILOG = """examples:
  gpt3-jax plan --config gpt3-175b --config mesh-v5p-512 --topology v5p:8x8x8
  gpt3-jax plan --config gpt3-xl --topology h100:1x8 --parallel.stage 2 --train.microbatch 8
  gpt3-jax plan --config gpt3-6.7b --topology v5e:16x16 --search

TPU topologies need libtpu (pip install libtpu), GPU topologies JAX's CUDA plugin (pip install 'jax[cuda13]'); neither
needs an accelerator. exit codes: 0 it fits; 1 it does not fit, or the compiler failed; 2 what was asked for is wrong"""


def main(argv: list[str]) -> int:
    """Prints the receipt, and returns 0 when the configuration fits.

    Raises:
        UserError: what was asked for is wrong.
        RunError: the compiler failed for another reason than memory.
    """
    args, overrides = _parser().parse_known_args(argv)
    if args.list_topologies:
        print(_families())
        return 0
    if not args.config:
        raise UserError("plan needs a configuration: --config gpt3-xl, or the path of a YAML file")
    if not args.topology:
        raise UserError("plan needs a topology: --topology v5p:8x8x8; gpt3-jax plan --list-topologies lists them")
    config = load_config(args.config, overrides)
    _on_cpu()
    from gpt3_jax.plan.compiled import compile_step
    from gpt3_jax.plan.receipt import make_receipt
    from gpt3_jax.plan.table import render
    from gpt3_jax.plan.topologies import open_topology

    topology = open_topology(args.topology, args.slices)
    print(f"compiling for {topology.name}, {len(topology.devices):,} devices", file=sys.stderr)
    receipt = make_receipt(compile_step(config, topology))
    print(json.dumps(as_json(receipt), indent=1) if args.json else render(receipt), end="" if not args.json else "\n")
    return 1 if receipt.memory.fits is False else 0


def as_json(receipt: Receipt) -> dict[str, Any]:
    """The receipt as plain data."""
    return dataclasses.asdict(receipt) | {"fits": receipt.memory.fits}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax plan",
        usage="gpt3-jax plan --config FILE [--config FILE ...] --topology NAME [options] [--SECTION.KEY VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="configuration, as of train; later ones win")
    parser.add_argument("--topology", metavar="NAME", help="machine: v5p:8x8x8 (chips of a torus), h100:16x8 (nodes × GPUs)")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="TPU slices of that size (default: 1)")
    parser.add_argument("--list-topologies", action="store_true", help="print the topologies that have names, and leave")
    parser.add_argument("--json", action="store_true", help="print the receipt as JSON")
    return parser


def _families() -> str:
    from gpt3_jax.plan.topologies import families

    lines = ["FAMILY:SIZE; other sizes of the same form work too"]
    lines += [f"  {family:<6} {'  '.join(examples)}" for family, examples in families().items()]
    return "\n".join(lines)


def _on_cpu() -> None:
    """JAX itself runs on the CPU here, whatever the machine has: what is planned for may be in use by somebody else."""
    import jax

    jax.config.update("jax_platforms", "cpu")
