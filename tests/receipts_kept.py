"""The receipts that the repository keeps: which plans they are, and how to make them anew.

    python tests/receipts_kept.py             # all; minutes each
    python tests/receipts_kept.py gpt3-175b.v5p-8x8x8

Each is kept twice: as JSON, which tests/test_plan_receipts.py compares with a fresh plan, and as the text that
`gpt3-jax plan` prints, for people.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shipped_configs import MACHINES, shipped

if TYPE_CHECKING:
    from gpt3_jax.plan.receipt import Receipt

FOLDER = Path(__file__).parent / "receipts"


@dataclasses.dataclass(frozen=True)
class Kept:
    configs: tuple[str, ...]
    topology: str
    overrides: tuple[str, ...] = ()
    label: str = ""
    """What tells it from another of the same model and topology."""

    @property
    def name(self) -> str:
        return ".".join(filter(None, (self.configs[0], self.topology.replace(":", "-"), self.label)))

    @property
    def command(self) -> str:
        configs = " ".join(f"--config {config}" for config in self.configs)
        return " ".join(["gpt3-jax plan", configs, f"--topology {self.topology}", *self.overrides])


_SMALL = ("--parallel.stage", "3", "--parallel.data", "16", "--memory.remat", "full", "--memory.microbatch", "4")
_LARGE = ("--parallel.stage", "3", "--parallel.data", "64", "--memory.remat", "full", "--memory.microbatch", "2")
_TENSOR = ("--parallel.stage", "3", "--parallel.data", "64", "--parallel.tensor", "8", "--memory.microbatch", "24")
KEPT = (
    *(Kept((size, mesh), MACHINES[mesh]) for mesh, size in shipped()),
    Kept(("gpt3-small",), "v5e:4x4", _SMALL),
    Kept(("gpt3-medium",), "v5e:4x4", _SMALL),
    Kept(("gpt3-large",), "v5e:8x8", _LARGE),
    Kept(("gpt3-175b",), "v5p:8x8x8", (*_TENSOR, "--memory.remat", "full"), "tensor"),
    Kept(("gpt3-175b",), "v5p:8x8x8", (*_TENSOR, "--memory.remat", "offload"), "offload"),
)
"""Those of the shipped configurations are made by their searches too (shipped_configs.py)."""


def make(kept: Kept) -> None:
    """Plans it and writes both files."""
    from gpt3_jax.config import load_config
    from gpt3_jax.plan.receipt import make_receipt
    from gpt3_jax.plan.step import compile_step
    from gpt3_jax.plan.topologies import open_topology

    keep(kept, make_receipt(compile_step(load_config(kept.configs, kept.overrides), open_topology(kept.topology))))


def keep(kept: Kept, receipt: Receipt) -> None:
    """Writes both files."""
    from gpt3_jax.plan.receipt import receipt_to_json
    from gpt3_jax.plan.table import render

    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{kept.name}.json").write_text(json.dumps(receipt_to_json(receipt), indent=1) + "\n")
    (FOLDER / f"{kept.name}.txt").write_text(f"$ {kept.command}\n\n{render(receipt)}")


if __name__ == "__main__":
    from gpt3_jax.plan.on_cpu import plan_on_cpu

    plan_on_cpu()
    wanted = sys.argv[1:] or [kept.name for kept in KEPT]
    for one in KEPT:
        if one.name in wanted:
            make(one)
            print(one.name, flush=True)
