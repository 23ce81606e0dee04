"""Prepares a process's environment: standard streams, accelerators and JAX's settings. Problems are fixed or refused.

Only `start_devices` imports JAX. The other functions run before JAX starts.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from gpt3_jax.errors import RunError, UserError

TPU_NODES = ("accel*", "vfio/[0-9]*")
GPU_NODES = ("nvidia[0-9]*", "dxg", "kfd")
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without these variables, libtpu queries Cloud's metadata server for half a minute and prints errors. Their values do
not matter: a plan names the topology that it compiles for."""
_WITHOUT_GPU = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
"""Without this, JAX's CUDA plugin looks for a driver and prints a traceback if there is none."""


def open_streams() -> None:
    """Makes stdin, stdout and stderr usable. A closed stream (``>&-``) is opened on the null device, and characters
    that the terminal's encoding lacks are written as escapes.

    A closed stream is dangerous: the next file opened gets its descriptor, and libraries that print would write into
    it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does by default


def hush_absent_devices() -> None:
    """Silences libtpu and JAX's CUDA plugin if they are installed for planning and there is no such device. Otherwise
    they print errors at every start of JAX. Keeps variables that are already set, and does nothing if the device
    exists."""
    if importlib.util.find_spec("libtpu") is not None and not has_devices(TPU_NODES):
        _set_defaults(_WITHOUT_TPU)
    if importlib.util.find_spec("jax_plugins") is not None and not has_devices(GPU_NODES):
        _set_defaults(_WITHOUT_GPU)


def compile_without_devices() -> None:
    """Lets the TPU and GPU compilers run on a machine without such devices, also in several processes at once."""
    _set_defaults(_WITHOUT_TPU | _WITHOUT_GPU)


def cpu_only() -> bool:
    """Whether JAX will use the CPU here, determined without starting JAX: no accelerator is requested, or none
    exists."""
    jax = sys.modules.get("jax")
    asked = os.environ.get("JAX_PLATFORMS") if jax is None else getattr(jax.config, "jax_platforms", None)
    if asked:
        return bool(asked == "cpu")
    if not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None:
        return True
    # A plugin without a device may be installed for planning.
    return not has_devices(TPU_NODES + GPU_NODES)


def start_devices(*, compiles_ahead: bool = False) -> None:
    """Starts JAX's devices as the environment requests, and checks for settings that this program does not support.

    Idempotent. Call after the processes of a run have joined, before anything else touches a device.

    Args:
        compiles_ahead: whether programs are compiled before they run, as in training.

    Raises:
        UserError: JAX_PLATFORMS names a missing platform; JAX_ENABLE_X64; JAX_DISABLE_JIT with `compiles_ahead`.
        RunError: the devices cannot be started.
    """
    import jax

    if getattr(jax.config, "jax_enable_x64", False):
        raise UserError(
            "JAX_ENABLE_X64 (jax_enable_x64) is on; models are trained and run with 32-bit numbers, and 64-bit "
            "numbers would change the results: unset it, or jax.config.update('jax_enable_x64', False)"
        )
    if compiles_ahead and getattr(jax.config, "jax_disable_jit", False):
        raise UserError("JAX_DISABLE_JIT (jax_disable_jit) is on; training compiles its steps before it runs: unset it")
    asked = getattr(jax.config, "jax_platforms", None)
    with _held_back_log() as said:
        try:
            jax.devices()
            return
        except (RuntimeError, AssertionError) as error:
            reasons = [*said, str(error)]
            said.clear()
    why = " ".join(next((reason for reason in reasons if reason), "it finds no such device").split())
    why = why.removeprefix("Unable to initialize backend ").split(" (set JAX_PLATFORMS")[0].rstrip(".")[:300]
    if asked:
        raise UserError(
            f"JAX_PLATFORMS (jax_platforms) is {asked!r}, which JAX cannot start here: {why}; unset it to use "
            "the available devices, or set it to cpu"
        )
    raise RunError(f"JAX cannot start this machine's devices: {why}; JAX_PLATFORMS=cpu runs on the CPU")


@contextlib.contextmanager
def _held_back_log() -> Iterator[list[str]]:
    """Holds log records back until the end of the block, and then emits those that the caller left in the list."""
    said: list[str] = []
    records: list[logging.LogRecord] = []

    class Hold(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            records.append(record)
            cause = record.exc_info[1] if record.exc_info else None
            said.append(str(cause or record.getMessage()) if record.levelno >= logging.ERROR else "")
            return False

    hold = Hold()
    handlers = [*logging.getLogger("jax").handlers, *logging.getLogger().handlers]
    if logging.lastResort is not None:
        handlers.append(logging.lastResort)
    for handler in handlers:
        handler.addFilter(hold)
    try:
        yield said
    finally:
        for handler in handlers:
            handler.removeFilter(hold)
        if said:
            for record in dict.fromkeys(records):
                logging.getLogger(record.name).handle(record)


def has_devices(nodes: tuple[str, ...]) -> bool:
    """Whether the machine has one of the device files, `TPU_NODES` or `GPU_NODES`."""
    return any(any(Path("/dev").glob(node)) for node in nodes)


def _set_defaults(values: dict[str, str]) -> None:
    for key, value in values.items():
        os.environ.setdefault(key, value)
