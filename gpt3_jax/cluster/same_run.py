"""What all processes of a run must have alike, compared before anything that could wait for ever where they do not.

Programs of two processes that differ do not fail: a collective of the one meets another's of the other, and the run
goes on with numbers that neither configuration gives, or stands still.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import jax
from jax.extend.backend import get_backend

from gpt3_jax.cluster.agreement import require_same
from gpt3_jax.config import Config, to_dict
from gpt3_jax.errors import UserError

COMPARE_WITHIN_S = 300.0
"""How long processes wait for one another to compare what they run: they have just met, and read no data before."""

_PACKAGES = (
    "gpt3-jax",
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "jax-cuda13-pjrt",
    "nvidia-cudnn-cu13",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "tiktoken",
)
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_OWN_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")  # a process's own folder; counted as devices
_JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
_PACKAGE = Path(__file__).resolve().parents[1]


def require_same_program(config: Config) -> None:
    """Compares configuration, code and versions. Call in all processes behind `start.start`, before anything else.

    Raises:
        UserError: they differ; in all processes, with each difference and who has what.
    """
    if jax.process_count() == 1:
        return
    _require_equal_devices()
    facts = settings(config) | code() | versions() | environment()
    require_same(facts, "what they run", {name: value[:12] for name, value in facts.items() if name.startswith("code")},
                 COMPARE_WITHIN_S)  # fmt: skip


def _require_equal_devices() -> None:
    """What processes tell one another they tell by collectives over all devices, which need as many in each process."""
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        told = ", ".join(f"process {process} has {count}" for process, count in sorted(counts.items())[:16])
        raise UserError(
            f"the processes do not have equally many devices: {told}{' ...' if len(counts) > 16 else ''}; start each "
            "with as many (CUDA_VISIBLE_DEVICES, JAX_LOCAL_DEVICE_IDS, XLA_FLAGS)"
        )


def require_same_data(tokenizer: str, sources: Iterable[tuple[str, str, str]]) -> None:
    """Compares what is read.

    Args:
        tokenizer: its fingerprint.
        sources: (name, path, fingerprint) of each, such as ``data.train[0]``. Paths may differ: a machine may have a
            copy of its own.

    Raises:
        UserError: they differ; in all processes.
    """
    facts, shown = {"data.tokenizer": tokenizer}, {"data.tokenizer": tokenizer[:12]}
    for name, path, fingerprint in sources:
        facts[name], shown[name] = fingerprint, f"{path} ({fingerprint[:12]})"
    require_same(facts, "the data that they read", shown)


def settings(config: Config) -> dict[str, str]:
    """The configuration but for what each process may have of its own: its number, the address at which it reaches
    process 0, and where its copies of the data and of the tokenizer lie
    (`require_same_data` compares what is in them)."""
    facts = {}
    for section, fields in to_dict(config).items():
        for key, value in fields.items():
            if section == "distributed" or (section, key) == ("data", "tokenizer"):
                continue
            if section == "data" and key in ("train", "eval"):
                value = [{name: v for name, v in source.items() if name != "path"} for source in value]
            facts[f"{section}.{key}"] = str(value)
    return facts


def code() -> dict[str, str]:
    """Digests of the files of this package, by name."""
    files = sorted(path for path in _PACKAGE.rglob("*") if path.suffix in (".py", ".yaml"))
    return {
        f"code of {path.relative_to(_PACKAGE.parent).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that have a part in the numbers, as installed here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def environment() -> dict[str, str]:
    """The backend and its flags, and JAX's settings that change numbers."""
    facts = {name: " ".join(sorted(f for f in os.environ.get(name, "").split() if not f.startswith(_OWN_FLAGS)))
             for name in _FLAGS}  # fmt: skip
    facts |= {name: str(getattr(jax.config, name, None)) for name in _JAX_SETTINGS}
    facts["backend"] = " ".join(f"{jax.default_backend()} {get_backend().platform_version}".split())
    facts["kind of device"] = ", ".join(sorted({device.device_kind for device in jax.local_devices()}))
    return facts
