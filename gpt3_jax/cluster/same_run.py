"""Checks that all processes of a run agree on configuration, code and data, before they could deadlock.

Two processes that run different programs do not fail: their collectives match each other, and the run continues with
numbers that neither configuration gives, or hangs.
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
"""How long processes wait for one another to compare their programs. They have just joined and read no data yet."""

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
# The first is a folder of each process. The second is compared as the number of devices.
_OWN_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")
_JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
_PACKAGE = Path(__file__).resolve().parents[1]


def require_same_program(config: Config) -> None:
    """Compares configuration, code and versions. Call in all processes after `start.start`, before anything else.

    Raises:
        UserError: they differ. Raised in all processes, with each difference and the processes that have each value.
    """
    if jax.process_count() == 1:
        return
    _require_equal_devices()
    facts = settings(config) | code() | versions() | environment()
    require_same(facts, "what they run", {name: value[:12] for name, value in facts.items() if name.startswith("code")},
                 COMPARE_WITHIN_S)  # fmt: skip


def _require_equal_devices() -> None:
    """Agreement uses collectives over all devices, which need equally many devices in each process."""
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        told = ", ".join(f"process {process} has {count}" for process, count in sorted(counts.items())[:16])
        raise UserError(
            f"the processes do not have equally many devices: {told}{' ...' if len(counts) > 16 else ''}; start each "
            "with the same number (CUDA_VISIBLE_DEVICES, JAX_LOCAL_DEVICE_IDS, XLA_FLAGS)"
        )


def require_same_data(tokenizer: str, sources: Iterable[tuple[str, str, str]]) -> None:
    """Compares the data that the processes read.

    Args:
        tokenizer: the tokenizer's fingerprint.
        sources: (name, path, fingerprint) of each source, such as ``data.train[0]``. Paths may differ, because a
            machine may have its own copy.

    Raises:
        UserError: they differ. Raised in all processes.
    """
    facts, shown = {"data.tokenizer": tokenizer}, {"data.tokenizer": tokenizer[:12]}
    for name, path, fingerprint in sources:
        facts[name], shown[name] = fingerprint, f"{path} ({fingerprint[:12]})"
    require_same(facts, "the data that they read", shown)


def settings(config: Config) -> dict[str, str]:
    """The configuration without what may differ between processes: its index, the address at which it reaches process
    0, and the paths of its copies of the data and of the tokenizer (`require_same_data` compares the contents)."""
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
    """Installed versions of Python and of the packages that affect the numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def environment() -> dict[str, str]:
    """The backend, its flags, and JAX's settings that change numbers."""
    facts = {name: " ".join(sorted(f for f in os.environ.get(name, "").split() if not f.startswith(_OWN_FLAGS)))
             for name in _FLAGS}  # fmt: skip
    facts |= {name: str(getattr(jax.config, name, None)) for name in _JAX_SETTINGS}
    facts["backend"] = " ".join(f"{jax.default_backend()} {get_backend().platform_version}".split())
    facts["kind of device"] = ", ".join(sorted({device.device_kind for device in jax.local_devices()}))
    return facts
