"""The parts of a run: checked before a file is written, opened once, and kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from gpt3_jax.cluster.agreement import together
from gpt3_jax.cluster.same_run import require_same_data, require_same_program
from gpt3_jax.config import Config
from gpt3_jax.data.stream import HeldOut, Stream, open_heldout, open_stream
from gpt3_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt3_jax.environment import cpu_only, start_devices
from gpt3_jax.errors import UserError
from gpt3_jax.parallel.mesh import batch_shards, make_mesh
from gpt3_jax.train.checkpoint.arrays import require_own_name
from gpt3_jax.train.checkpoint.resume import Data
from gpt3_jax.train.host_memory import run_in_turn
from gpt3_jax.train.schedule import BatchSchedule, batch_schedule
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Checked:
    """The mesh, schedule and tokenizer that follow from a configuration and the attached devices."""

    mesh: Mesh
    tokenizer: Tokenizer
    schedule: BatchSchedule


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the loop and its hooks work with."""

    config: Config
    mesh: Mesh
    tokenizer: Tokenizer
    schedule: BatchSchedule
    stream: Stream
    heldout: HeldOut | None
    """None without `data.eval`."""
    data: Data
    """Fingerprints of the training data and of the tokenizer."""

    @property
    def folder(self) -> Path:
        """`train.run_dir`."""
        return Path(self.config.train.run_dir)


def check(config: Config) -> Checked:
    """Starts the devices, and checks everything that does not need a file to be read or written. Call it after
    `cluster.start.start`, in all processes.

    Raises:
        UserError: the processes differ in what they run; mesh, batch, tokenizer or run folder do not fit the devices,
            the model, or each other.
        RunError: the devices cannot be started.
    """
    if cpu_only():
        run_in_turn()
    start_devices(compiles_ahead=True)
    require_same_program(config)
    with together("checking the configuration"):
        return _check(config)


def _check(config: Config) -> Checked:
    require_own_name(Path(config.train.run_dir))
    mesh = make_mesh(config.parallel)
    schedule = batch_schedule(config, batch_shards(mesh))
    abstract_state(config, mesh)
    make_step(config, mesh)  # for its checks; it is not traced
    tokenizer = load_tokenizer(config.data.tokenizer)
    if tokenizer.n_vocab > config.model.n_vocab:
        raise UserError(
            f"data.tokenizer {config.data.tokenizer} has {tokenizer.n_vocab} tokens, model.n_vocab is "
            f"{config.model.n_vocab}; set model.n_vocab to {tokenizer.n_vocab}"
        )
    if config.train.tokens // config.model.n_ctx >= 2**32:
        raise UserError(
            f"train.tokens {config.train.tokens} is more than 2**32 sequences of model.n_ctx {config.model.n_ctx}; "
            "the position in the data is counted in 32 bits"
        )
    return Checked(mesh, tokenizer, schedule)


def open_run(config: Config, checked: Checked) -> Run:
    """Opens the data, the same in all processes.

    Raises:
        UserError: no data, data that does not fit the model or the tokenizer, or that other processes see differently.
        RunError: data that cannot be read.
    """
    data, model, tokenizer = config.data, config.model, checked.tokenizer
    with together("opening the data"):
        if not data.train:
            raise UserError(
                "data.train is empty; give at least one source, e.g. --data.train '[{path: DIR}]' with a DIR written "
                "by `gpt3-jax data tokenize`"
            )
        stream = open_stream(data.train, model.n_ctx, data.seed, model.n_vocab, tokenizer.fingerprint)
        heldout = open_heldout(data.eval, model.n_ctx, model.n_vocab, tokenizer.fingerprint) if data.eval else None
    sources = [(f"data.train[{n}]", *source) for n, source in enumerate(stream.sources)]
    sources += [(f"data.eval[{n}]", *source) for n, source in enumerate(heldout.sources if heldout else ())]
    require_same_data(tokenizer.fingerprint, sources)
    fingerprints = Data(stream.fingerprint, tokenizer.fingerprint)
    return Run(config, checked.mesh, tokenizer, checked.schedule, stream, heldout, fingerprints)
