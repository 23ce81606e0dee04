"""Plans of configurations drawn at random: the memory that the compiler assigned, for `plan.estimate` to be held to.

    python tests/plans_drawn.py     # makes all of tests/plans_drawn.csv anew; half a minute each

Drawn were, each with equal chances: a size, a family of devices and one of its topologies, the tensor axis and the rest
of the mesh, the stage, the remat, the microbatch and the parts; what an estimate put above 1.6 times the capacity was
drawn again. `bytes` are arguments and temporaries of one device, without the program itself.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

from gpt3_jax.config import Config, load_config
from gpt3_jax.parallel.mesh import MeshShape

FILE = Path(__file__).parent / "plans_drawn.csv"


@dataclasses.dataclass(frozen=True)
class Drawn:
    model: str
    topology: str
    replica: int
    data: int
    tensor: int
    stage: int
    remat: str
    microbatch: int
    mlp_parts: int
    bytes: int

    @property
    def mesh(self) -> MeshShape:
        return MeshShape(self.replica, self.data, self.tensor)

    @property
    def config(self) -> Config:
        parallel = {name: getattr(self, name) for name in ("stage", "replica", "data", "tensor")}
        memory = {name: getattr(self, name) for name in ("remat", "microbatch", "mlp_parts")}
        options = ["--train.ramp_tokens", "0"]
        for section, settings in (("parallel", parallel), ("memory", memory)):
            options += [word for name, value in settings.items() for word in (f"--{section}.{name}", str(value))]
        return load_config([self.model], options)

    @property
    def microbatches(self) -> int:
        config = self.config
        return config.train.batch_tokens // config.model.n_ctx // self.mesh.batch_shards // self.microbatch

    @property
    def platform(self) -> str:
        return "gpu" if self.topology.startswith("h") else "tpu"

    @property
    def overlaps_scatters(self) -> bool:
        """Whether the compiler runs reduce-scatters beside compute (`compiler_options.overlaps_scatters`)."""
        return not self.topology.startswith("v5e")

    def __str__(self) -> str:
        mesh = f"{self.replica}x{self.data}x{self.tensor}"
        return f"{self.model}.{self.topology}-{mesh}-stage{self.stage}-{self.remat}-{self.microbatch}-{self.mlp_parts}"


def kept() -> list[Drawn]:
    """The rows of the file."""
    types: dict[str, Any] = {f.name: str if f.type == "str" else int for f in dataclasses.fields(Drawn)}
    with FILE.open(newline="") as file:
        return [Drawn(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


def compiled_bytes(drawn: Drawn) -> int:
    """What the compiler assigns now."""
    from gpt3_jax.plan.step import compile_step
    from gpt3_jax.plan.topologies import open_topology

    peak = compile_step(drawn.config, open_topology(drawn.topology)).peak
    return peak.arguments + peak.temporaries


def _make() -> None:
    rows = [dataclasses.replace(drawn, bytes=compiled_bytes(drawn)) for drawn in kept()]
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Drawn)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


if __name__ == "__main__":
    from gpt3_jax.plan.on_cpu import plan_on_cpu

    plan_on_cpu()
    _make()
