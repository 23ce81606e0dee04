"""Machines that need not be attached: the devices of a named TPU or GPU topology, as the compiler knows them.

TPU topologies are libtpu's own. NVIDIA GPUs are described to XLA's CUDA compiler by a written target configuration
(`gpu_targets`). Neither needs an accelerator, a driver or a network.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import re
from typing import Any

import jax
from jax.experimental import topologies

from gpt3_jax.devices import XLA_GPU_FRACTION, Device, lookup
from gpt3_jax.environment import compile_without_devices
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.plan.gpu_targets import TARGETS

_TPU_DIMENSIONS = {"v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_DEVICES_PER_CHIP = {"tpu7x": 2}
"""Families in which JAX shows one chip as several devices."""
_EXAMPLES = {
    "v5e": ("v5e:1x1", "v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16"),
    "v5p": ("v5p:2x2x1", "v5p:4x4x4", "v5p:8x8x8", "v5p:8x16x16", "v5p:16x16x24"),
    "v6e": ("v6e:1x1", "v6e:2x4", "v6e:4x4", "v6e:8x8", "v6e:16x16"),
    "tpu7x": ("tpu7x:2x2x1", "tpu7x:4x4x4", "tpu7x:8x8x8"),
    "a100": ("a100:1x8", "a100:16x8"),
    "h100": ("h100:1x8", "h100:16x8", "h100:64x8"),
    "h200": ("h200:1x8", "h200:16x8", "h200:64x8"),
}
_INSTALL = {
    "tpu": "pip install libtpu (no TPU is needed)",
    "gpu": "pip install 'jax[cuda13]' (no GPU is needed)",
}
_LARGEST = 65_536
"""Devices; more than any machine has. A mistyped size must not use up the planner's memory."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine to compile for."""

    name: str
    """In small letters: ``v5p:8x8x8``, ``h100:16x8``; with slices, ``2 × v5p:8x8x8``."""
    family: str
    shape: tuple[int, ...]
    """TPU: chips along each dimension of the torus. GPU: nodes, GPUs in a node."""
    slices: int
    devices: tuple[jax.Device, ...] = dataclasses.field(hash=False)  # thousands; the name tells machines apart
    device: Device | None
    """Its row of the device table; None when it has none."""

    @property
    def has_nodes(self) -> bool:
        """Whether devices sit in nodes behind a switch, as GPUs do, and not on a torus."""
        return self.family in TARGETS

    @property
    def usable(self) -> int | None:
        """Bytes of a device that a program can be given; of a GPU, the part that XLA takes when it is started as by
        launch/. None for a device that is not in the table."""
        if self.device is None:
            return None
        return int(self.device.hbm_usable * XLA_GPU_FRACTION) if self.has_nodes else self.device.hbm_usable

    @property
    def platform(self) -> str:
        """tpu or gpu; cpu for the fake devices of tests."""
        return str(self.devices[0].platform)


def families() -> dict[str, tuple[str, ...]]:
    """What `open_topology` knows: each family of devices with examples of names."""
    return dict(_EXAMPLES)


def open_topology(name: str, slices: int = 1) -> Topology:
    """The machine of this name.

    Args:
        name: ``FAMILY:SIZE``, in capitals or not. TPU sizes are chips along the torus (``v5p:8x8x8``, ``v5e:16x16``),
            GPU sizes nodes × GPUs in a node (``h100:16x8``).
        slices: TPU slices of this size, joined by the data-center network.

    Raises:
        UserError: a name that is not a topology, or a compiler (libtpu, JAX's CUDA plugin) that is not installed.
        RunError: the compiler refuses to describe a topology that it should know.
    """
    name = name.strip().lower()
    family, _, size = name.partition(":")
    if family not in _EXAMPLES:
        near = difflib.get_close_matches(family, _EXAMPLES, n=1, cutoff=0.4)
        hint = f"the nearest is {_EXAMPLES[near[0]][-1]}" if near else f"there are {', '.join(_EXAMPLES)}"
        raise UserError(
            f"unknown topology {name!r}; {hint}; expected FAMILY:SIZE, gpt3-jax plan --list-topologies lists them"
        )
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", size):
        raise UserError(
            f"topology {name!r} has the size {size!r}; expected numbers with x between: {_EXAMPLES[family][-1]}"
        )
    shape = tuple(int(part) for part in size.split("x"))
    if slices < 1:
        raise UserError(f"--slices is {slices}; expected at least 1")
    if math.prod(shape) * slices > _LARGEST:
        raise UserError(f"topology {name!r} has {math.prod(shape) * slices:,} devices; expected at most {_LARGEST:,}")
    return _gpu(name, family, shape, slices) if family in TARGETS else _tpu(name, family, shape, slices)


def _tpu(name: str, family: str, shape: tuple[int, ...], slices: int) -> Topology:
    wanted = _TPU_DIMENSIONS[family]
    if len(shape) != wanted:
        raise UserError(
            f"topology {name!r} has {len(shape)} dimensions; a {family} torus has {wanted}: {_EXAMPLES[family][-1]}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {name!r} needs the TPU compiler, and libtpu is not installed; install it with {_INSTALL['tpu']}"
        )
    compile_without_devices()
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{family}:{'x'.join(map(str, shape))}", **more
        )
    except (ImportError, RuntimeError, ValueError) as error:
        if _cannot_be_loaded(error):
            raise UserError(
                f"the TPU compiler, libtpu, cannot be loaded: {_reason(error)}; install it anew with {_INSTALL['tpu']}"
            ) from None
        raise UserError(
            f"topology {name!r} is none that libtpu knows: {_reason(error)}; e.g. {_EXAMPLES[family][-1]}"
        ) from None
    return _checked(name, family, shape, slices, described)


def _gpu(name: str, family: str, shape: tuple[int, ...], slices: int) -> Topology:
    if len(shape) != 2:
        raise UserError(f"topology {name!r} has {len(shape)} numbers; expected NODESxGPUS: {_EXAMPLES[family][-1]}")
    if slices != 1:
        raise UserError(
            f"--slices is {slices}, but {family} nodes make no slices; put the nodes into the name: "
            f"{family}:{shape[0] * slices}x{shape[1]}"
        )
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (13, 12)):
        raise UserError(
            f"topology {name!r} needs the CUDA compiler, and JAX's CUDA plugin is not installed; install it with "
            f"{_INSTALL['gpu']}"
        )
    compile_without_devices()
    try:
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name=family,
            topology=f"1x{shape[0]}x{shape[1]}",  # partitions × hosts × devices of a host
            target_config=TARGETS[family],
        )
    except (ImportError, RuntimeError, ValueError) as error:
        if _cannot_be_loaded(error):
            raise UserError(
                f"the CUDA compiler, JAX's CUDA plugin, cannot be loaded: {_reason(error)}; install it anew with "
                f"{_INSTALL['gpu']}"
            ) from None
        raise RunError(f"topology {name!r} cannot be described to the CUDA compiler: {_reason(error)}") from None
    return _checked(name, family, shape, slices, described)


def missing_library(error: Exception) -> str:
    """What to install when tracing or compiling for a GPU failed for want of one of NVIDIA's libraries, in one line;
    empty for any other error. They come with JAX's CUDA plugin: cuDNN is asked for its version when attention is
    traced, ptxas and libdevice are used by the compiler."""
    found = re.search(r"cudnn|ptxas|libdevice|nvlink|nvjitlink|nvvm", str(error), re.IGNORECASE)
    if not found:
        return ""
    return f"compiling for GPUs needs NVIDIA's libraries: {_reason(error)}; install them with {_INSTALL['gpu']}"


def _cannot_be_loaded(error: Exception) -> bool:
    """Whether a compiler's library is absent or damaged, so that no topology can be described."""
    words = r"not installed|not implemented for|Failed to open|cannot open shared object|No module named"
    return isinstance(error, ImportError) or bool(re.search(words, str(error)))


def _checked(
    name: str, family: str, shape: tuple[int, ...], slices: int, described: topologies.TopologyDescription
) -> Topology:
    devices: tuple[Any, ...] = tuple(described.devices)
    expected = math.prod(shape) * slices * _DEVICES_PER_CHIP.get(family, 1)
    if len(devices) != expected:
        raise RunError(
            f"topology {name!r}: the compiler describes {len(devices)} devices, expected {expected}; its "
            "version may be too old or too new for this machine"
        )
    title = f"{slices} × {name}" if slices > 1 else name
    return Topology(title, family, shape, slices, devices, lookup(devices[0].device_kind))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
