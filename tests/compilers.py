"""Marks of tests that compile for hardware that is not there: skipped, with what to install, where its compiler is
missing."""

from __future__ import annotations

import importlib.util
from ctypes.util import find_library

import pytest

from gpt3_jax.plan.gpu_targets import TARGETS


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _needs(found: bool, what: str, extra: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not found, reason=f"needs {what}: pip install -c constraints.txt -e '.[{extra}]'")


_PLUGIN = _found("jax_cuda13_plugin") or _found("jax_cuda12_plugin")
NEEDS_TPU = _needs(_found("libtpu"), "the TPU compiler", "plan")
NEEDS_CUDA_PLUGIN = _needs(_PLUGIN, "the CUDA plugin", "cuda")
NEEDS_GPU = _needs(
    _PLUGIN and (_found("nvidia.cudnn") or find_library("cudnn") is not None), "the CUDA plugin and cuDNN", "cuda"
)


def needs_compiler_of(topology: str) -> pytest.MarkDecorator:
    """The mark for a topology's name, such as ``v5p:8x8x8``."""
    return NEEDS_GPU if topology.partition(":")[0] in TARGETS else NEEDS_TPU
