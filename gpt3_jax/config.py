"""The typed configuration: frozen dataclasses, filled from YAML files and dotted overrides.

Every number of the GPT-3 paper stands once, as a default here or in ``configs/gpt3-*.yaml``; every number
that the paper leaves open is a named setting. Parsing is jsonargparse's: strict types, unknown keys refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture (GPT-3 section 2.1, Table 2.1). Names are the paper's."""

    n_layers: int = 12
    """Transformer blocks. A multiple of the length of `attention_pattern`."""
    d_model: int = 768
    """Width of the residual stream. The MLP is 4 times as wide (section 2.1)."""
    n_heads: int = 12
    """Attention heads; each is d_model / n_heads wide."""
    n_ctx: int = 2048
    """Context length in tokens, training and generation alike."""
    n_vocab: int = 50257
    """True vocabulary size, end-of-text included. Padding for sharding is apart: see `vocab_multiple`."""
    attention_pattern: tuple[Literal["dense", "banded"], ...] = ("dense", "banded")
    """Kinds of attention, repeated through the depth. `[dense]` is GPT-2."""
    band_width: int = 256
    """Positions that a banded layer sees, the token itself included. Not in the paper; GPT-Neo's choice."""
    init_std: float = 0.02
    """Standard deviation of weight matrices and token embeddings at initialisation (GPT-2's code)."""
    position_init_std: float = 0.01
    """Standard deviation of position embeddings at initialisation (GPT-2's code)."""
    residual_init: Literal["2L", "L", "none"] = "2L"
    """Residual projections start at init_std / sqrt(2L), / sqrt(L), or unscaled. The paper does not say."""
    norm_eps: float = 1e-5
    """LayerNorm epsilon (GPT-2's code)."""
    vocab_multiple: int = 128
    """The embedding table is padded to a multiple of this; padding never trains and is never sampled."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Matmul operands and activations; float32 is full fp32 on every device. Softmax, LayerNorm statistics, loss and
    master weights are fp32 always."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "n_ctx", "n_vocab", "band_width", "vocab_multiple"):
            value = getattr(self, name)
            _require(value >= 1, f"model.{name} is {value}; expected at least 1")
        for name in ("init_std", "position_init_std", "norm_eps"):
            value = getattr(self, name)
            _require(value > 0, f"model.{name} is {value}; expected more than 0")
        _require(
            self.d_model % self.n_heads == 0,
            f"model.d_model {self.d_model} does not divide by model.n_heads {self.n_heads}; "
            "choose heads that divide the width",
        )
        _require(len(self.attention_pattern) > 0, "model.attention_pattern is empty; expected e.g. [dense, banded]")
        _require(
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

    peak_lr: float = 6.0e-4
    """Learning rate after warm-up (Table 2.1)."""
    warmup_tokens: int = 375_000_000
    """Linear warm-up, in tokens."""
    decay_tokens: int = 260_000_000_000
    """Cosine decay ends here, in tokens from the start of training; constant afterwards."""
    decay_after_warmup: bool = False
    """Count decay_tokens from the end of the warm-up instead. The paper does not say which."""
    final_lr_fraction: float = 0.1
    """Learning rate at the end of the decay, as a fraction of the peak."""
    beta1: float = 0.9
    """Adam's decay rate of the first moment."""
    beta2: float = 0.95
    """Adam's decay rate of the second moment."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on the parameters that the parameter table declares for it."""
    clip_norm: float = 1.0
    """Global-norm clip of the gradients; 0 turns it off."""

    def __post_init__(self) -> None:
        _require(self.peak_lr > 0, f"optimizer.peak_lr is {self.peak_lr}; expected more than 0")
        _require(self.warmup_tokens >= 0, f"optimizer.warmup_tokens is {self.warmup_tokens}; expected 0 or more")
        _require(
            self.decay_after_warmup or self.decay_tokens > self.warmup_tokens,
            f"optimizer.decay_tokens {self.decay_tokens} is not after optimizer.warmup_tokens "
            f"{self.warmup_tokens}; raise the one or lower the other",
        )
        _require(self.decay_tokens > 0, f"optimizer.decay_tokens is {self.decay_tokens}; expected more than 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optimizer.{name} is {value}; expected 0 <= {name} < 1")
        _require(
            0 <= self.final_lr_fraction <= 1,
            f"optimizer.final_lr_fraction is {self.final_lr_fraction}; expected a fraction from 0 to 1",
        )
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            _require(value >= 0, f"optimizer.{name} is {value}; expected 0 or more")
        _require(self.eps > 0, f"optimizer.eps is {self.eps}; expected more than 0")


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """The mesh and the ZeRO stage (ZeRO sections 5 and 6)."""

    stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 parameters too."""
    replica: int = 1
    """Plain data parallelism over this many slices or nodes, outside the ZeRO group."""
    data: int = -1
    """ZeRO's data parallelism; -1 takes all the devices that the other two axes leave."""
    tensor: int = 1
    """Megatron tensor parallelism, with the residual stream sharded along the sequence between blocks."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Gradients are reduced over devices in this dtype (always float32 on CPU, whose compiler aborts on bf16)."""
    overlap: bool = True
    """Tell the compiler to let traffic run beside compute, by what is known of the device
    (parallel/compiler_options.py); false: its own defaults. The same sums, perhaps in another order."""

    def __post_init__(self) -> None:
        for name in ("replica", "tensor"):
            value = getattr(self, name)
            _require(value >= 1, f"parallel.{name} is {value}; expected at least 1")
        _require(
            self.data >= 1 or self.data == -1,
            f"parallel.data is {self.data}; expected at least 1, or -1 for all devices left",
        )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture: token shards on disk, and its weight."""

    path: str
    """Folder written by `gpt3-jax data tokenize`, a nanoGPT .bin, or a Megatron .bin with its .idx beside it."""
    weight: float = 1.0
    """Share of sequences drawn from this source, relative to the others (weights are normalised)."""
    dtype: Literal["uint16", "uint32", "int32"] = "uint16"
    """Token type of a nanoGPT .bin, which does not say its own. Ignored by the other formats."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", local_path(self.path, "path of a source"))
        _require(self.weight > 0, f"weight of source {self.path!r} is {self.weight}; expected more than 0")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on and what is held out."""

    tokenizer: str = "r50k_base"
    """`r50k_base` (GPT-2's BPE), `bytes` (256 bytes and end-of-text), or the path of a tiktoken rank file."""
    train: tuple[SourceConfig, ...] = ()
    """Sources to train on. Empty, with the tokenizer `bytes`: `gpt3-jax train` takes the quickstart's text, the Python
    standard library on this machine."""
    eval: tuple[SourceConfig, ...] = ()
    """Held-out sources. Empty: no evaluation (the quickstart holds out files of its own)."""
    seed: int = 0
    """Seed of the data order. Sequence n of the stream is a function of (seed, n) alone."""
    prefetch: int = 2
    """Batches read ahead of the step, in a thread."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", local_path(self.tokenizer, "data.tokenizer"))
        _require(0 <= self.seed < 2**63, f"data.seed is {self.seed}; expected 0 <= seed < 2**63")
        _require(self.prefetch >= 1, f"data.prefetch is {self.prefetch}; expected at least 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how large a batch, how often what. All cadences are in tokens."""

    run_dir: str = "runs/default"
    """Folder of the run: checkpoints, metrics, configuration. A checkpoint found there is resumed."""
    seed: int = 0
    """Seed of the initial parameters."""
    tokens: int = 300_000_000_000
    """Tokens to train on (Table 2.1). Training ends with the batch that reaches it."""
    batch_tokens: int = 524_288
    """Tokens in a full global batch: whole sequences of model.n_ctx, and divisible by the mesh."""
    ramp_start_tokens: int = 32_768
    """Batch size at the start of the ramp, in tokens; rounded up to what the mesh divides."""
    ramp_tokens: int = 0
    """The batch grows linearly from ramp_start_tokens to batch_tokens over this many tokens; 0: no ramp."""
    ramp_stages: int = 16
    """Batch sizes on the ramp at most; each is compiled before training starts."""
    microbatch: int = 0
    """Sequences per data shard and microbatch; 0: the whole batch at once, no accumulation."""
    remat: Literal["none", "dots", "full", "offload"] = "full"
    """What the backward pass recomputes: nothing; all but matmul results; or every block from its input, which is kept
    in the device's memory (full) or in the host's (offload: ZeRO's P_a+cpu, section 6.1; on a CPU they are one)."""
    unroll: int = 1
    """Periods of the attention pattern per iteration of the scan over depth. More is faster on CPU; compile time and
    code grow with it."""
    mlp_parts: int = 1
    """At ZeRO stage 3 with remat full or offload: parts that an MLP's weights are gathered in, one worked with while
    the next is on its way. Less memory where these weights make the peak, mostly for some more time: ask
    `gpt3-jax plan`."""
    loss_chunk: int = 1024
    """Rows (tokens) of logits held at once by the loss."""
    log_tokens: int = 0
    """Tokens between lines of metrics.jsonl and TensorBoard events; 0: every batch."""
    eval_tokens: int = 1_000_000_000
    """Tokens between evaluations on held-out data; one also stands at the end."""
    eval_sequences: int = 1024
    """Sequences of held-out data per evaluation at most, from the start of the held-out stream; 0: all."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """On a loss or gradient that is not finite: stop, or skip the update and count it."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder, beside metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in (
            "tokens",
            "batch_tokens",
            "ramp_start_tokens",
            "ramp_stages",
            "unroll",
            "mlp_parts",
            "loss_chunk",
            "eval_tokens",
        ):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} is {value}; expected at least 1")
        for name in ("ramp_tokens", "microbatch", "log_tokens", "eval_sequences"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name} is {value}; expected 0 or more")
        _require(0 <= self.seed < 2**32, f"train.seed is {self.seed}; expected 0 <= seed < 2**32")
        object.__setattr__(self, "run_dir", local_path(self.run_dir, "train.run_dir"))
        _require(
            self.ramp_tokens == 0 or self.ramp_start_tokens <= self.batch_tokens,
            f"train.ramp_start_tokens {self.ramp_start_tokens} is above train.batch_tokens {self.batch_tokens}; "
            "lower it, or set train.ramp_tokens to 0",
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: when, and which are kept."""

    every_tokens: int = 1_000_000_000
    """Tokens between checkpoints. One is also written at the end, and on SIGTERM or SIGINT."""
    keep_last: int = 3
    """How many of the newest checkpoints are kept."""
    keep_every_tokens: int = 0
    """The first checkpoint at or after each multiple of this many tokens is kept for good; 0: none."""
    on_change: Literal["refuse", "accept"] = "refuse"
    """When a resumed run's configuration differs in what would change the run: refuse, or go on with the new one."""

    def __post_init__(self) -> None:
        for name in ("every_tokens", "keep_last"):
            value = getattr(self, name)
            _require(value >= 1, f"checkpoint.{name} is {value}; expected at least 1")
        _require(
            self.keep_every_tokens >= 0,
            f"checkpoint.keep_every_tokens is {self.keep_every_tokens}; expected 0 or more",
        )


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes. Left alone, a cluster (Cloud TPU, SLURM, Kubernetes, Open MPI) is found by JAX itself."""

    mode: Literal["auto", "off", "manual"] = "auto"
    """auto: start JAX's distributed service when a cluster is found; manual: with the three settings below."""
    coordinator: str = ""
    """HOST:PORT of process 0, in manual mode."""
    processes: int = 0
    """Number of processes, in manual mode."""
    process_id: int = -1
    """Number of this process, from 0, in manual mode."""

    def __post_init__(self) -> None:
        if self.mode == "manual":
            _require(
                re.fullmatch(r".+:\d+", self.coordinator) is not None,
                f"distributed.coordinator is {self.coordinator!r}; expected HOST:PORT with distributed.mode manual",
            )
            _require(
                0 <= self.process_id < self.processes,
                f"distributed.process_id {self.process_id} is not within distributed.processes {self.processes}; "
                "number the processes from 0",
            )
        else:
            stray = [n for n, default in (("coordinator", ""), ("processes", 0), ("process_id", -1))
                     if getattr(self, n) != default]  # fmt: skip
            _require(
                not stray,
                f"distributed.{stray[0] if stray else ''} is set but distributed.mode is {self.mode!r}; "
                "set distributed.mode to manual",
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        ctx = self.model.n_ctx
        _require(
            self.train.batch_tokens % ctx == 0,
            f"train.batch_tokens {self.train.batch_tokens} is not a whole number of sequences of model.n_ctx {ctx}; "
            f"the nearest {'is' if self.train.batch_tokens < ctx else 'are'} "
            + (f"{self.train.batch_tokens // ctx * ctx} and " if self.train.batch_tokens >= ctx else "")
            + f"{(self.train.batch_tokens // ctx + 1) * ctx}",
        )
        _require(
            ctx % self.parallel.tensor == 0,
            f"model.n_ctx {ctx} does not divide by parallel.tensor {self.parallel.tensor}; the residual stream is "
            "sharded along the sequence, choose a tensor axis that divides it",
        )
        _require(
            self.model.n_heads % self.parallel.tensor == 0,
            f"model.n_heads {self.model.n_heads} does not divide by parallel.tensor {self.parallel.tensor}; "
            "choose a tensor axis that divides the heads",
        )
        # XLA finds the copies of a loop over depth; of an unrolled one it keeps the inputs, or cannot compile it.
        _require(
            self.train.remat != "offload" or self.train.unroll == 1,
            f"train.remat is offload with train.unroll {self.train.unroll}; set train.unroll to 1: the copies to the "
            "host need the loop over depth as it is",
        )
        _require(
            self.train.remat != "offload" or self.model.n_layers > len(self.model.attention_pattern),
            f"train.remat is offload with model.n_layers {self.model.n_layers}; expected more than the "
            f"{len(self.model.attention_pattern)} of model.attention_pattern, else there is no loop over depth; set "
            "train.remat to full",
        )
        _require(
            self.train.mlp_parts == 1 or (self.parallel.stage == 3 and self.train.remat in ("full", "offload")),
            f"train.mlp_parts is {self.train.mlp_parts} with parallel.stage {self.parallel.stage} and train.remat "
            f"{self.train.remat}; expected 1 there: only stage 3 with remat full or offload gathers an MLP's weights "
            "in parts; set train.mlp_parts to 1, or both of these",
        )


# ---------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------


def config_dir() -> Path:
    """The folder of shipped configurations: beside the package in a checkout, inside it when installed."""
    inside = Path(str(importlib.resources.files("gpt3_jax"))) / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def presets() -> tuple[str, ...]:
    """Names of the paper's eight sizes (Table 2.1), smallest first."""
    return tuple(
        f"gpt3-{size}" for size in ("small", "medium", "large", "xl", "2.7b", "6.7b", "13b", "175b")
    )  # fmt: skip


def preset(name: str) -> Config:
    """The shipped configuration ``configs/NAME.yaml``.

    Raises:
        UserError: no such configuration; names the nearest.
    """
    path = config_dir() / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in config_dir().glob("*.yaml"))
        raise UserError(f"no configuration is called {name!r}{_nearest(name, known)}; there are {', '.join(known)}")
    return load_config([path])


def build_parser(prog: str = "gpt3-jax train", description: str | None = None) -> jsonargparse.ArgumentParser:
    """The command-line parser whose options are the fields of `Config`, docstrings and defaults included."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="YAML file; may be given several times, later files win. A bare name such as gpt3-small or mesh-h100-8 "
        "is looked up among the shipped configurations.",
    )
    parser.add_class_arguments(Config, fail_untyped=True)
    return parser


@functools.cache
def _parser() -> jsonargparse.ArgumentParser:
    """One for all: to make it means to parse this file's docstrings, a quarter of a second."""
    return build_parser()


def load_config(paths: Sequence[str | os.PathLike[str]] = (), overrides: Sequence[str] = ()) -> Config:
    """Reads YAML files (later wins) and dotted overrides such as ``["--optimizer.peak_lr", "6e-4"]``.

    Raises:
        UserError: a file that cannot be read, an unknown key (with the nearest name), a value of the wrong type,
            an impossible value, values that contradict each other.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        _merge(merged, _read_yaml(_find(Path(local_path(path, "--config")))))
    arguments = _checked_overrides(overrides)
    parser = _parser()
    try:
        namespace = parser.parse_object(merged)
        namespace = parser.parse_args(arguments, namespace=namespace)
        values = parser.instantiate(namespace)
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(_one_line(str(error))) from None
    return Config(**{field.name: values[field.name] for field in dataclasses.fields(Config)})


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain dicts, lists and scalars, as YAML and JSON hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`, as strict as a YAML file."""
    _check_keys(values, Config, "", "the saved configuration")
    parser = _parser()
    try:
        instantiated = parser.instantiate(parser.parse_object(values))
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(_one_line(str(error))) from None
    return Config(**{field.name: instantiated[field.name] for field in dataclasses.fields(Config)})


def replace(config: Config, **sections: dict[str, Any]) -> Config:
    """A copy with some fields of some sections changed: ``replace(c, train={"tokens": 10})``."""
    changed = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **changed)


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    shipped = config_dir() / f"{path.name}.yaml"
    if path.parent == Path(".") and shipped.is_file():
        return shipped  # also beside a folder of that name, such as a run's or its data's
    if path.is_dir():
        raise UserError(f"configuration file {str(path)!r} is a folder; expected a YAML file")
    known = sorted(p.stem for p in config_dir().glob("*.yaml"))
    raise UserError(
        f"configuration file {str(path)!r} does not exist{_nearest(path.stem, known)}; "
        f"expected a YAML file or one of {', '.join(known)}"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"configuration file {str(path)!r} cannot be read: {error}") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"configuration file {str(path)!r} is not valid YAML: {_one_line(str(error))}") from None
    if not isinstance(values, dict):
        raise UserError(f"configuration file {str(path)!r} holds a {type(values).__name__}; expected keys and values")
    return _check_keys(values, Config, "", repr(str(path)))


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


_SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "parallel": ParallelConfig,
    "data": DataConfig,
    "checkpoint": CheckpointConfig,
    "distributed": DistributedConfig,
}


def known_keys() -> tuple[str, ...]:
    """Every dotted key that a configuration file or an override may set."""
    return tuple(f"{section}.{name}" for section, cls in _SECTIONS.items() for name in _fields(cls))


def _check_keys(values: dict[str, Any], cls: Any, prefix: str, where: str) -> dict[str, Any]:
    """Refuses unknown keys, and lets 3e9 stand for an integer where one is wanted."""
    fields = _fields(cls)
    checked = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in fields:
            candidates = [f"{prefix}{field}" for field in fields]
            if cls in _SECTIONS.values():
                candidates += known_keys()
            raise UserError(f"unknown key {name!r} in {where}{_nearest(name, candidates)}")
        if cls is Config:
            if not isinstance(value, dict):
                raise UserError(
                    f"{name} in {where} is {value!r}; expected the keys {', '.join(_fields(_SECTIONS[key]))}"
                )
            value = _check_keys(value, _SECTIONS[key], f"{name}.", where)
        elif key in ("train", "eval") and cls is DataConfig and isinstance(value, list):
            value = [_check_source(item, f"{name}[{i}]", where) for i, item in enumerate(value)]
        elif value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"{name} in {where} is {value}; expected a value (leave the key out for its default)")
        elif fields[key].type == "int":
            value = _whole(value)
        checked[key] = value
    return checked


def _check_source(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("path", ""), str):
        raise UserError(f"{name} in {where} is {value!r}; expected e.g. {{path: FOLDER, weight: 1.0}}")
    checked = _check_keys(value, SourceConfig, f"{name}.", where)
    if "path" not in checked:
        raise UserError(f"{name} in {where} has no path; expected e.g. {{path: FOLDER, weight: 1.0}}")
    return checked


def _checked_overrides(overrides: Sequence[str]) -> list[str]:
    arguments = []
    known = known_keys()
    key = ""
    for argument in overrides:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            if key not in known:
                hint = _nearest(key, known)
                raise UserError(f"unknown option --{key}{hint.replace(' is ', ' is --') if hint else ''}")
            argument = f"--{key}={_whole_text(key, _sources_text(key, value))}" if equals else argument
        elif key:
            argument, key = _whole_text(key, _sources_text(key, argument)), ""
        else:
            raise UserError(f"unexpected argument {argument!r}; expected options such as --train.tokens 1e9")
        arguments.append(argument)
    return arguments


def _sources_text(key: str, text: str) -> str:
    """The text of a list of sources, unchanged, once it is known to be one: the parser's words are not for people."""
    if key not in ("data.train", "data.eval"):
        return text
    expected = "expected a list such as '[{path: FOLDER, weight: 1.0}]'"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--{key} {text!r} is not valid YAML; {expected}") from None
    if not isinstance(value, list):
        raise UserError(f"--{key} is {text!r}; {expected}")
    for i, item in enumerate(value):
        _check_source(item, f"{key}[{i}]", "the command line")
    return text


def _whole(value: Any) -> Any:
    """3e9 and '3e9' as 3000000000: YAML reads the first as a float or a string."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+]?\d+", value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_text(key: str, value: str) -> str:
    section, name = key.split(".")
    return str(_whole(value)) if _fields(_SECTIONS[section])[name].type == "int" else value


def _nearest(name: str, candidates: Sequence[str]) -> str:
    """``"; the nearest is 'x'"``, by the whole name or by its last part."""
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not found:
        by_leaf = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
        found = [by_leaf[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1, cutoff=0.7)]
    return f"; the nearest is {found[0]}" if found else ""


def _one_line(message: str) -> str:
    """jsonargparse's message, which spans lines and names Python types, as one line."""
    message = " ".join(message.split())
    message = re.sub(r'Parser key "([^"]+)": ?', r"\1: ", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    message = re.sub(r"(?:[Ee]xpected a )?(?:typing\.)?Literal\[([^\]]*)\]", r"expected one of \1", message)
    message = message.replace('in "<unicode string>", line', "in line")  # YAML's name for a text that it did not open
    return message.replace("typing.", "").replace("Expected a ", "expected ").replace(". Got value: ", ", got ")
