"""The settings of the machine: the mesh and the ZeRO stage, memory, and the processes of a run.

None of them is the paper's recipe, and most change a result by rounding alone. `schema` has the others, and says how
settings are declared.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from gpt3_jax.config.checks import require, require_choices
from gpt3_jax.config.setting import setting


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """The mesh and the ZeRO stage (ZeRO sections 5 and 6)."""

    stage: Literal[0, 1, 2, 3] = setting(1, changes_run=False, changes_cost=True)
    """ZeRO stage. 0 replicates everything; 1 shards optimizer state; 2 also gradients; 3 also parameters."""
    replica: int = setting(1, changes_run=False)
    """Plain data parallelism over slices or nodes, outside the ZeRO group."""
    data: int = setting(-1, changes_run=False)
    """Data parallelism inside the ZeRO group; -1: all devices that the other two axes leave."""
    tensor: int = setting(1, changes_run=False)
    """Megatron tensor parallelism. Between blocks the residual stream is sharded along the sequence."""
    reduce_dtype: Literal["float32", "bfloat16"] = setting("float32", changes_cost=True)
    """Dtype in which gradients are reduced across devices. Always float32 on CPU, where XLA aborts on bf16."""
    overlap: bool = setting(True, changes_run=False, changes_cost=True)
    """Run communication beside compute: by compiler options and at stage 3 by a loop over depth that sends weights and
    gradients a block off, for a block's weights and two blocks' gradients of memory and one block in n_layers of
    traffic (parallel/README.md). false: neither. May change the order of sums, and nothing else in the result."""
    tensor_overlap: Literal["none", "rings"] = setting("none", changes_run=False, changes_cost=True)
    """How the forward pass gathers and scatters over `tensor`. rings: in pieces, beside the matmuls that need them;
    for more than two tensor shards, as two lose by it (parallel/README.md). Changes the order and the rounding of sums
    over `tensor`, and nothing else in the result. An MLP in parts is gathered as with none."""

    def __post_init__(self) -> None:
        require_choices(self, "parallel")
        for name in ("replica", "tensor"):
            value = getattr(self, name)
            require(value >= 1, f"parallel.{name} is {value}; expected at least 1")
        require(
            self.data >= 1 or self.data == -1,
            f"parallel.data is {self.data}; expected at least 1, or -1 for all devices left",
        )


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Trade-offs between memory and time. None of them changes a result by more than the rounding of sums."""

    remat: Literal["none", "minimal", "save_qkv_proj", "save_attention", "full", "offload"] = setting(
        "full",
        was="train.remat",
        values_were=(("dots", "minimal", "same results but for rounding, more memory than full"),),
        changes_run=False,
        changes_cost=True,
    )
    """What the backward pass recomputes, by less memory and more time. none: nothing; minimal: LayerNorms and GELUs;
    save_qkv_proj: the MLP's first matmul, too; save_attention: also queries, keys and values; full: each block from its
    input; offload: like full, with the inputs in the host's memory (ZeRO's P_a+cpu, section 6.1; a CPU: full)."""
    unroll: int = setting(0, was="train.unroll", changes_run=False, changes_cost=True)
    """Periods of the attention pattern per iteration of the scan over depth. More is faster on CPU, but increases
    compile time and code size. 0: automatic. One period; all periods on a single CPU device if the run is long enough
    to repay compiling. A run resumed on a single CPU device keeps the number that it began with."""
    mlp_parts: int = setting(1, was="train.mlp_parts", changes_run=False, changes_cost=True)
    """Parts in which an MLP's weights are gathered, at ZeRO stage 3 with remat full or offload. The next part is
    prefetched while one is in use. More parts save memory where these weights set the peak, usually at some cost in
    time; `gpt3-jax plan` shows both."""
    loss_chunk: int = setting(1024, was="train.loss_chunk", changes_run=False, changes_cost=True)
    """Rows (tokens) of logits that the loss holds at once."""
    microbatch: int = setting(0, was="train.microbatch", changes_run=False)
    """Sequences per data shard and microbatch; 0: the whole batch at once, no accumulation."""

    def __post_init__(self) -> None:
        require_choices(self, "memory")
        for name in ("mlp_parts", "loss_chunk"):
            value = getattr(self, name)
            require(value >= 1, f"memory.{name} is {value}; expected at least 1")
        for name in ("unroll", "microbatch"):
            value = getattr(self, name)
            require(value >= 0, f"memory.{name} is {value}; expected 0 or more")


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Multi-process settings. By default JAX detects the cluster (Cloud TPU, SLURM, Kubernetes, Open MPI)."""

    mode: Literal["auto", "off", "manual"] = setting("auto", changes_run=False)
    """auto: start JAX's distributed service when a cluster is found; manual: with the three settings below."""
    coordinator: str = setting("", changes_run=False)
    """HOST:PORT of process 0, in manual mode."""
    processes: int = setting(0, changes_run=False)
    """Number of processes, in manual mode."""
    process_id: int = setting(-1, changes_run=False)
    """Index of this process, from 0, in manual mode."""

    def __post_init__(self) -> None:
        require_choices(self, "distributed")
        if self.mode == "manual":
            require(
                re.fullmatch(r".+:\d+", self.coordinator) is not None,
                f"distributed.coordinator is {self.coordinator!r}; expected HOST:PORT with distributed.mode manual",
            )
            require(
                0 <= self.process_id < self.processes,
                f"distributed.process_id {self.process_id} is not within distributed.processes {self.processes}; "
                "number the processes from 0",
            )
        else:
            defaults = (("coordinator", ""), ("processes", 0), ("process_id", -1))
            stray = [name for name, default in defaults if getattr(self, name) != default]
            require(
                not stray,
                f"distributed.{stray[0] if stray else ''} is set but distributed.mode is {self.mode!r}; "
                "set distributed.mode to manual",
            )
