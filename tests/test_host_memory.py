"""Memory that is freed is kept, and how much a step takes is known well enough to choose how."""

from __future__ import annotations

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from gpt3_jax.config import load_config, preset, replace
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.host_memory import step_bytes
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step

_FAULTS = """
import ctypes, resource, sys, threading
from gpt3_jax.train.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory(float(sys.argv[2]))
libc, size = ctypes.CDLL(None), int(float(sys.argv[2]))
touched = min(size, int(90e6))
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def touch():
    for _ in range(3):
        block = libc.malloc(size)
        ctypes.memset(block + size - touched, 1, touched)
        libc.free(block)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
def twice():
    touch()
    faults()
thread = threading.Thread(target=twice)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
# Below and above what one thread's arena holds; and more than an int holds, as glibc's thresholds are.
@pytest.mark.parametrize("size", [40e6, 90e6, 2.5e9])
def test_a_block_that_was_freed_is_not_paid_for_again(size: float) -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", _FAULTS, how, str(size)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert faults("keep") < 1000 < 3 * min(size, 90e6) / 4096 * 0.9 < faults("leave")


@pytest.mark.parametrize("name", ["shakespeare", "quickstart"])
def test_what_a_step_keeps_is_known_roughly(name: str) -> None:
    config = replace(preset(name), parallel={"data": 1})
    mesh = make_mesh(config.parallel, jax.devices()[:1])
    rows = jax.ShapeDtypeStruct((config.train.batch_tokens // config.model.n_ctx, config.model.n_ctx + 1), jnp.int32)
    compiled = make_step(config, mesh).lower(abstract_state(config, mesh), rows).compile()
    assert step_bytes(config) == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=0.15)


def test_a_microbatch_counts_and_not_the_batch() -> None:
    whole = load_config(["gpt3-small"])
    part = replace(whole, memory={"microbatch": 2})
    assert step_bytes(part) * 128 == step_bytes(whole)
