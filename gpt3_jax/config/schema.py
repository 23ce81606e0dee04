"""The typed configuration: frozen dataclasses, one for each section. Those of the machine are in `machine`.

Every number of the GPT-3 paper appears once: as a default here, in ``configs/gpt3-*.yaml`` if it depends on the model
size, or in `gpt3_jax.config.paper` if it is not the value of a setting. Every number that the paper leaves open is a
setting.

The docstring below a field is its help text. `setting` records what the field means to the rest of the project.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from gpt3_jax.config.checks import require, require_choices, require_finite
from gpt3_jax.config.machine import DistributedConfig, MemoryConfig, ParallelConfig
from gpt3_jax.config.paper import RAMP_TOKENS
from gpt3_jax.config.setting import Paper, setting
from gpt3_jax.paths import local_path


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture (GPT-3 section 2.1, Table 2.1). Names are the paper's."""

    n_layers: int = setting(12, paper=Paper("Table 2.1"))
    """Transformer blocks. A multiple of the length of `attention_pattern`."""
    d_model: int = setting(768, paper=Paper("Table 2.1"))
    """Width of the residual stream. The MLP is 4 times as wide."""
    n_heads: int = setting(12, paper=Paper("Table 2.1"))
    """Attention heads; each is d_model / n_heads wide."""
    n_ctx: int = setting(2048, paper=Paper("section 2.1"))
    """Context length in tokens, for training and generation."""
    n_vocab: int = setting(50257, paper=Paper("section 2.1: GPT-2's"))
    """Vocabulary size without padding, end-of-text included. `vocab_multiple` sets the padding."""
    attention_pattern: tuple[Literal["dense", "banded"], ...] = setting(
        ("dense", "banded"), paper=Paper("section 2.1: alternating; which comes first is not published")
    )
    """Attention kinds of successive layers, repeated over the depth. `[dense]` is GPT-2."""
    band_width: int = setting(256, paper=Paper("section 2.1: banded; how wide is not published", published=False))
    """Positions that a banded layer attends to, the query's own included. The default is GPT-Neo's."""
    init_std: float = setting(0.02, paper=Paper("GPT-2's code"))
    """Standard deviation of weight matrices and token embeddings at initialisation."""
    position_init_std: float = setting(0.01, paper=Paper("GPT-2's code"))
    """Standard deviation of position embeddings at initialisation."""
    residual_init: Literal["2L", "L", "none"] = setting(
        "2L", paper=Paper("section 2.1: scaled as in GPT-2; by which depth is not published", published=False)
    )
    """Standard deviation of residual projections: init_std / sqrt(2L), init_std / sqrt(L), or init_std."""
    norm_eps: float = setting(1e-5, paper=Paper("GPT-2's code"))
    """LayerNorm epsilon."""
    vocab_multiple: int = 128
    """The embedding table is padded to a multiple of this; padding never trains and is never sampled."""
    dtype: Literal["bfloat16", "float32"] = setting("bfloat16", changes_cost=True)
    """Dtype of matmul operands and activations. float32 means full fp32 on every device. Softmax, LayerNorm statistics,
    loss and master weights are always fp32."""

    def __post_init__(self) -> None:
        require_finite(self, "model")
        require_choices(self, "model")
        for name in ("n_layers", "d_model", "n_heads", "n_ctx", "n_vocab", "band_width", "vocab_multiple"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name} is {value}; expected at least 1")
        for name in ("init_std", "position_init_std", "norm_eps"):
            value = getattr(self, name)
            require(value > 0, f"model.{name} is {value}; expected more than 0")
        require(
            self.d_model % self.n_heads == 0,
            f"model.d_model {self.d_model} is not divisible by model.n_heads {self.n_heads}; "
            "choose heads that divide the width",
        )
        require(len(self.attention_pattern) > 0, "model.attention_pattern is empty; expected e.g. [dense, banded]")
        require(
            self.n_layers % len(self.attention_pattern) == 0,
            f"model.n_layers {self.n_layers} is not a multiple of the {len(self.attention_pattern)} entries of "
            f"model.attention_pattern {list(self.attention_pattern)}; change one of them",
        )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def d_ff(self) -> int:
        return 4 * self.d_model

    @property
    def n_vocab_padded(self) -> int:
        return -(-self.n_vocab // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule (GPT-3 appendix B). Schedules are functions of tokens, never of steps."""

    peak_lr: float = setting(6.0e-4, paper=Paper("Table 2.1"))
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_tokens: int = setting(375_000_000, paper=Paper("appendix B"))
    """Linear warm-up, in tokens."""
    decay_tokens: int = setting(260_000_000_000, paper=Paper("appendix B"))
    """End of the cosine decay, in tokens from the start of training. The learning rate is constant afterwards."""
    decay_after_warmup: bool = setting(False, paper=Paper("appendix B does not say", published=False))
    """Count decay_tokens from the end of the warm-up instead."""
    final_lr_fraction: float = setting(0.1, paper=Paper("appendix B"))
    """Learning rate at the end of the decay, as a fraction of the peak."""
    beta1: float = setting(0.9, paper=Paper("appendix B"))
    """Adam's decay rate of the first moment."""
    beta2: float = setting(0.95, paper=Paper("appendix B"))
    """Adam's decay rate of the second moment."""
    eps: float = setting(1e-8, paper=Paper("appendix B"))
    """Adam's epsilon."""
    weight_decay: float = setting(0.1, paper=Paper("appendix B"))
    """Decoupled weight decay (AdamW's), on the parameters of `weight_decay_on`."""
    weight_decay_on: Literal["matrices", "matrices_and_embeddings", "all"] = setting(
        "matrices_and_embeddings", paper=Paper("appendix B does not say", published=False)
    )
    """Parameters that decay: weight matrices; also token and position embeddings; or all parameters, biases and
    LayerNorms included."""
    clip_norm: float = setting(1.0, paper=Paper("appendix B"))
    """Global-norm clip of the gradients; 0 turns it off."""

    def __post_init__(self) -> None:
        require_finite(self, "optimizer")
        require_choices(self, "optimizer")
        require(self.peak_lr > 0, f"optimizer.peak_lr is {self.peak_lr}; expected more than 0")
        require(self.warmup_tokens >= 0, f"optimizer.warmup_tokens is {self.warmup_tokens}; expected 0 or more")
        require(
            self.decay_after_warmup or self.decay_tokens > self.warmup_tokens,
            f"optimizer.decay_tokens {self.decay_tokens} is not after optimizer.warmup_tokens "
            f"{self.warmup_tokens}; raise the one or lower the other",
        )
        require(self.decay_tokens > 0, f"optimizer.decay_tokens is {self.decay_tokens}; expected more than 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} is {value}; expected 0 <= {name} < 1")
        require(
            0 <= self.final_lr_fraction <= 1,
            f"optimizer.final_lr_fraction is {self.final_lr_fraction}; expected a fraction from 0 to 1",
        )
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            require(value >= 0, f"optimizer.{name} is {value}; expected 0 or more")
        require(self.eps > 0, f"optimizer.eps is {self.eps}; expected more than 0")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture: token shards on disk, and its weight."""

    path: str
    """Folder written by `gpt3-jax data tokenize`, a .bin or .npy of token ids (nanoGPT, llm.c, modded-nanogpt, NumPy),
    or a Megatron .bin with its .idx beside it."""
    weight: float = 1.0
    """Share of sequences drawn from this source, relative to the others (weights are normalised)."""
    dtype: Literal["auto", "uint16", "uint32", "int32", "int64"] = "auto"
    """Type of the ids in a raw .bin without a header (nanoGPT's). auto: the type that a header or an index gives, or
    else the only type for which the ids are valid. If the ids do not determine it, it must be set."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", local_path(self.path, "path of a source"))
        require_finite(self, f"source {self.path!r}")
        require_choices(self, f"source {self.path!r}")
        require(self.weight > 0, f"weight of source {self.path!r} is {self.weight}; expected more than 0")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training data and held-out data."""

    tokenizer: str = setting("r50k_base", paper=Paper("section 2.1: GPT-2's"), changes_run=False)
    """`r50k_base` (GPT-2's BPE), `bytes` (256 bytes and end-of-text), or the path of a tiktoken rank file or of a
    folder with Hugging Face's files of a byte-level BPE."""
    train: tuple[SourceConfig, ...] = setting(
        (), paper=Paper("Table 2.2: five datasets by their weights"), changes_run=False
    )
    """Training sources. Empty, with the tokenizer `bytes`: `gpt3-jax train` uses the text that `builtin` names."""
    eval: tuple[SourceConfig, ...] = setting((), changes_run=False)
    """Held-out sources. Empty: no evaluation (the text that `builtin` names holds out a part of its own)."""
    builtin: Literal["stdlib", "in-context"] = setting("stdlib", changes_run=False)
    """Text without a download, for a run without sources. stdlib: the Python standard library on this machine, the
    quickstart's. in-context: generated examples of rules, from which a model learns in context."""
    seed: int = 0
    """Seed of the data order. Sequence n of the stream is a function of (seed, n) alone."""
    prefetch: int = setting(2, changes_run=False)
    """Batches to prefetch, in a thread."""

    def __post_init__(self) -> None:
        require_choices(self, "data")
        object.__setattr__(self, "tokenizer", local_path(self.tokenizer, "data.tokenizer"))
        require(0 <= self.seed < 2**63, f"data.seed is {self.seed}; expected 0 <= seed < 2**63")
        require(self.prefetch >= 1, f"data.prefetch is {self.prefetch}; expected at least 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of training, batch size, and how often to log and evaluate. Cadences are in tokens."""

    run_dir: str = setting("runs/default", changes_run=False)
    """Folder of the run: checkpoints, metrics, configuration. Training resumes from a checkpoint found there."""
    seed: int = 0
    """Seed of the initial parameters."""
    tokens: int = setting(300_000_000_000, paper=Paper("Table 2.1"), changes_run=False)
    """Tokens to train on. Training ends with the batch that reaches it."""
    batch_tokens: int = setting(524_288, paper=Paper("Table 2.1, in whole sequences"))
    """Tokens in a full global batch. Must be whole sequences of model.n_ctx that divide over the mesh."""
    ramp_start_tokens: int = setting(32_768, paper=Paper("appendix B"))
    """Batch size at the start of the ramp, in tokens, rounded to the nearest size that divides over the mesh."""
    ramp_tokens: int = setting(
        0, paper=Paper("appendix B: by size; which within these is not published", between=RAMP_TOKENS)
    )
    """The batch grows linearly from ramp_start_tokens to batch_tokens over this many tokens; 0: no ramp."""
    ramp_sizes: int = setting(
        16,
        paper=Paper("appendix B: linear; in how many sizes is not published", published=False),
        was="train.ramp_stages",
    )
    """Maximum number of batch sizes on the ramp, spaced by ratio. Each is compiled before training starts."""
    log_tokens: int = setting(0, changes_run=False)
    """Tokens between lines of metrics.jsonl and TensorBoard events; 0: every batch."""
    eval_tokens: int = setting(1_000_000_000, changes_run=False)
    """Tokens between evaluations on held-out data. One more runs at the end."""
    eval_sequences: int = setting(1024, changes_run=False)
    """Maximum number of held-out sequences per evaluation, from the start of the held-out stream; 0: all."""
    nonfinite: Literal["stop", "skip"] = setting("stop", changes_run=False)
    """On a loss or gradient that is not finite: stop, or skip the update and count it."""
    tensorboard: bool = setting(True, changes_run=False)
    """Write TensorBoard events into the run folder, beside metrics.jsonl."""

    def __post_init__(self) -> None:
        require_choices(self, "train")
        for name in ("tokens", "batch_tokens", "ramp_start_tokens", "ramp_sizes", "eval_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name} is {value}; expected at least 1")
        for name in ("ramp_tokens", "log_tokens", "eval_sequences"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name} is {value}; expected 0 or more")
        require(0 <= self.seed < 2**32, f"train.seed is {self.seed}; expected 0 <= seed < 2**32")
        object.__setattr__(self, "run_dir", local_path(self.run_dir, "train.run_dir"))
        require(
            self.ramp_tokens == 0 or self.ramp_start_tokens <= self.batch_tokens,
            f"train.ramp_start_tokens {self.ramp_start_tokens} is above train.batch_tokens {self.batch_tokens}; "
            "lower it, or set train.ramp_tokens to 0",
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: when, and which are kept."""

    every_tokens: int = setting(1_000_000_000, changes_run=False)
    """Tokens between checkpoints. One is also written at the end, and on SIGTERM or SIGINT."""
    keep_last: int = setting(3, changes_run=False)
    """Number of most recent checkpoints to keep."""
    keep_every_tokens: int = setting(0, changes_run=False)
    """The first checkpoint at or after each multiple of this many tokens is kept permanently; 0: none."""
    on_change: Literal["refuse", "accept"] = setting("refuse", changes_run=False)
    """If a resumed run's configuration differs in a setting that changes the run: refuse, or use the new value."""

    def __post_init__(self) -> None:
        require_choices(self, "checkpoint")
        for name, least in (("every_tokens", 1), ("keep_last", 1), ("keep_every_tokens", 0)):
            value = getattr(self, name)
            require(value >= least, f"checkpoint.{name} is {value}; expected at least {least}")


@dataclasses.dataclass(frozen=True)
class EvalsConfig:
    """Tasks that are evaluated during training, by the paper's protocol (section 2.4), as `gpt3-jax evaluate` does."""

    tasks: tuple[str, ...] = setting((), changes_run=False)
    """Tasks, as in gpt3-jax evaluate --tasks: arithmetic, words, text:FILE, …; empty: none."""
    shots: tuple[int, ...] = setting((0, 1, 10), changes_run=False)
    """Numbers of demonstrations, K, each from 0."""
    every_tokens: int = setting(1_000_000_000, changes_run=False)
    """Tokens between evaluations. One more runs before the first step, and one at the end. A signal to stop waits until
    an evaluation has ended, so keep its time short (`limit`)."""
    limit: int = setting(100, changes_run=False)
    """Items of each task that are evaluated, the first ones."""
    words: str = setting("", changes_run=False)
    """List of words for the word tasks, one a line; empty: the machine's."""
    data: str = setting("", changes_run=False)
    """Folder of the tasks' data sets, as in gpt3-jax evaluate --data; empty: none."""

    def __post_init__(self) -> None:
        for name in ("every_tokens", "limit"):
            value = getattr(self, name)
            require(value >= 1, f"evals.{name} is {value}; expected at least 1")
        require(min(self.shots, default=0) >= 0, f"evals.shots has {min(self.shots, default=0)}; expected 0 or more")
        require(bool(self.shots) or not self.tasks, "evals.shots is empty; expected at least one number, such as 0")
        for name in ("words", "data"):
            if path := getattr(self, name):
                object.__setattr__(self, name, local_path(path, f"evals.{name}"))


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evals: EvalsConfig = dataclasses.field(default_factory=EvalsConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        ctx = self.model.n_ctx
        require(
            self.train.batch_tokens % ctx == 0,
            f"train.batch_tokens {self.train.batch_tokens} is not a whole number of sequences of model.n_ctx {ctx}; "
            f"the nearest {'is' if self.train.batch_tokens < ctx else 'are'} "
            + (f"{self.train.batch_tokens // ctx * ctx} and " if self.train.batch_tokens >= ctx else "")
            + f"{(self.train.batch_tokens // ctx + 1) * ctx}",
        )
        require(
            ctx % self.parallel.tensor == 0,
            f"model.n_ctx {ctx} is not divisible by parallel.tensor {self.parallel.tensor}; the residual stream is "
            "sharded along the sequence, choose a tensor axis that divides it",
        )
        require(
            self.model.n_heads % self.parallel.tensor == 0,
            f"model.n_heads {self.model.n_heads} is not divisible by parallel.tensor {self.parallel.tensor}; "
            "choose a tensor axis that divides the heads",
        )
        # XLA recognises the copies to the host in a rolled loop over depth. In an unrolled one it keeps the block
        # inputs on the device, or fails to compile.
        require(
            self.memory.remat != "offload" or self.memory.unroll <= 1,
            f"memory.remat is offload with memory.unroll {self.memory.unroll}; set memory.unroll to 1: offload needs a "
            "loop over depth that is not unrolled",
        )
        require(
            self.memory.remat != "offload" or self.model.n_layers > len(self.model.attention_pattern),
            f"memory.remat is offload with model.n_layers {self.model.n_layers}; expected more than the "
            f"{len(self.model.attention_pattern)} of model.attention_pattern, else there is no loop over depth; set "
            "memory.remat to full",
        )
        require(
            self.memory.mlp_parts == 1 or (self.parallel.stage == 3 and self.memory.remat in ("full", "offload")),
            f"memory.mlp_parts is {self.memory.mlp_parts} with parallel.stage {self.parallel.stage} and memory.remat "
            f"{self.memory.remat}; expected 1 there: only stage 3 with remat full or offload gathers an MLP's weights "
            "in parts; set memory.mlp_parts to 1, or both of these",
        )
