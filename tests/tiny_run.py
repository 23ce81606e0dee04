"""A run small enough to be trained many times over: its data, its configuration, and what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from xla_flags import xla_flags

from gpt3_jax.config import Config, from_dict, to_dict
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.data.writer import ShardWriter
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.checkpoint.reader import CheckpointReader
from gpt3_jax.train.state import TrainState, abstract_state

PROGRAMS = os.environ.get("GPT3_JAX_TEST_PROGRAMS", "")
"""Folder of compiled programs (conftest.py makes it, for all of pytest's processes): XLA takes seconds for what these
runs execute in milliseconds, and they are many and alike, here and in processes that the tests start."""
jax.config.update("jax_compilation_cache_dir", PROGRAMS or None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
SHARED = {"JAX_COMPILATION_CACHE_DIR": PROGRAMS, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
"""Environment variables with which another process takes programs from there, and adds its own."""

CTX = 16
MODEL = {
    "n_layers": 1, "attention_pattern": ["dense"], "d_model": 16, "n_heads": 2, "n_ctx": CTX, "n_vocab": 257,
    "vocab_multiple": 16, "dtype": "float32",
}  # fmt: skip


def write_tokens(folder: Path, tokens: int, seed: int = 0) -> Path:
    """Token shards of random words: some 40 bytes a document."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), 4)) for _ in range(20)]
    tokenizer = ByteTokenizer()
    with ShardWriter(folder, tokenizer, {"test": seed}) as writer:
        while writer.n_tokens < tokens:
            text = " ".join(rng.choice(words, 8))
            ids = np.append(tokenizer.encode_array(text), tokenizer.eot).astype(np.uint16)
            writer.append(ids, np.array([len(ids)]), len(text))
        writer.finish()
    return folder


def tiny(data: Path, run_dir: Path, /, **sections: dict[str, Any]) -> Config:
    """64 tokens (4 sequences) a batch, 16 batches; fields of sections on top."""
    base: dict[str, Any] = {
        "model": MODEL,
        "optimizer": {"peak_lr": 1e-2, "warmup_tokens": 256, "decay_tokens": 1024},
        "train": {
            "run_dir": str(run_dir), "tokens": 1024, "batch_tokens": 64,
            "eval_tokens": 256, "eval_sequences": 6, "tensorboard": False,
        },
        "memory": {"loss_chunk": 16, "remat": "none"},
        "parallel": {"data": 1},
        "data": {
            "tokenizer": "bytes", "train": [{"path": str(data / "train")}], "eval": [{"path": str(data / "heldout")}],
        },
        "checkpoint": {"every_tokens": 256},
    }  # fmt: skip
    default = to_dict(Config())
    for name, fields in default.items():
        fields.update(base.get(name, {}))
        fields.update(sections.get(name, {}))
    return from_dict(default)


def write_data(folder: Path) -> Path:
    write_tokens(folder / "train", 4000)
    write_tokens(folder / "heldout", 6 * CTX + 5, seed=1)
    return folder


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "mfu")} for line in lines]


def losses(run_dir: Path) -> dict[int, float]:
    return {line["tokens"]: line["loss"] for line in metrics(run_dir) if line["kind"] == "train"}


def saved(config: Config) -> TrainState:
    """The newest checkpoint of a run, on one device."""
    mesh = make_mesh(from_dict({"parallel": {"data": 1}}).parallel, jax.devices()[:1])
    reader = CheckpointReader(Path(config.train.run_dir) / "checkpoints")
    restored = reader.restore(abstract_state(config, mesh))
    assert restored is not None
    state: TrainState = jax.device_get(restored.state)
    return state


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process with so many devices. It compiles as pytest's own processes do, whose programs it can then take."""
    return {
        **os.environ,
        **SHARED,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def start(config: Config, file: Path, *more: str, devices: int = 1, before: str = "") -> subprocess.Popen[str]:
    """``gpt3-jax train`` in a process of its own, after the Python code `before`."""
    file.write_text(yaml.safe_dump(to_dict(config)))
    env = environment(devices)
    arguments = ["train", "--config", str(file), *more]
    command = [sys.executable, "-m", "gpt3_jax", *arguments]
    if before:
        command = [
            sys.executable,
            "-c",
            f"{before}\nfrom gpt3_jax.cli.main import main\nraise SystemExit(main({arguments}))",
        ]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a process that hangs fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err
