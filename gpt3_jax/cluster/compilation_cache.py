"""Keeps compiled programs on disk, so that later starts of the same or a similar run do not compile.

This is JAX's persistent compilation cache, in the user's cache folder. It belongs to the machine, not to a run, so
JAX's own variables configure it: JAX_COMPILATION_CACHE_DIR moves it, JAX_ENABLE_COMPILATION_CACHE=false turns it off.

In a multi-process run, either all processes must find a program or none. Otherwise they would run programs that were
compiled at different times, and on GPUs the processes that compile wait for each other's share of the autotuning. JAX
looks a program up in each process, but only process 0 writes. So all processes find a program that one of them finds if

* they use the same folder, which `enable` tests;
* their keys are equal. A key is a digest of the program, the versions, the flags and the backend's flags, which
  `same_run` compares, and of the compiler options and the devices. Of these, JAX (0.10 to 0.12) leaves out
  process-specific parts on GPUs and has none on TPUs. On CPUs the keys differ between processes, so process 0 would
  find programs that the others do not. `enable` tests this with a small program and leaves the cache off if the keys
  differ;
* nothing deletes the program between the first and the last look-up: `trim` keeps what was used in the last two days.

The compile-time threshold and the writing concern process 0 only. No process finds what is written during its own
start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
import time
from pathlib import Path
from stat import S_ISREG

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3_jax.cluster.agreement import everywhere, from_lead, is_lead
from gpt3_jax.cluster.log import log

MAX_BYTES = 2 * 2**30
"""Maximum size of the cache, over all machines that share the home folder; what was used in the last two days stays."""
_MIN_COMPILE_S = 0.1
"""Programs that compile faster are not kept. JAX's default, 1 s, excludes most of generation's programs."""
_JAX_MIN_COMPILE_S = 1.0
_SPARED_S = 2 * 86_400
"""Programs used within this time are not deleted. File systems record access times once a day (relatime)."""
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


_suspended = False
"""Whether the cache is off only until it is known to serve all processes alike."""
_settled = False
"""Whether that is known by now."""


def environment(folder: Path) -> dict[str, str]:
    """Environment variables for a process that keeps its compiled programs in `folder`, whatever this one does."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_COMPILATION_CACHE"}
    return kept | {"JAX_COMPILATION_CACHE_DIR": str(folder)}


def suspend() -> None:
    """In a multi-process run, turns JAX's cache off until `enable` or `keep_if_shared` has tested that it serves all
    processes alike. Starts no devices."""
    global _suspended
    if _settled or not jax.distributed.is_initialized():
        return
    if getattr(jax.config, "jax_enable_compilation_cache", True):
        _switch(False)
        _suspended = True


def keep_if_shared() -> None:
    """For runs that were not started by a command: with several processes, the cache that the user has chosen stays on
    only where it serves all of them alike. To be called in all processes, before anything compiles."""
    suspend()
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if _suspended and chosen:
        _resume(f"JAX_COMPILATION_CACHE_DIR {chosen}")


def enable() -> None:
    """Turns the cache on for this process. Call after `start.start`, in all processes, before anything compiles.

    A folder chosen by the user, or a cache that the user turned off, is kept as it is. If the folder cannot be written
    or does not serve all processes alike, the cache stays off, with a warning.
    """
    # Flags that JAX's type stubs leave out.
    if not _suspended and not getattr(jax.config, "jax_enable_compilation_cache", True):
        return
    if getattr(jax.config, "jax_persistent_cache_min_compile_time_secs", None) == _JAX_MIN_COMPILE_S:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_S)
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if chosen is not None:
        if _suspended and chosen:
            _resume(f"JAX_COMPILATION_CACHE_DIR {chosen}")
        return
    try:
        folder = default_folder()
    except RuntimeError:  # a user without a home folder, as in some containers; all processes must agree on it
        folder = Path("~/.cache/gpt3-jax")
    why = _unusable(folder)
    if why:
        log.warning(
            f"compiled programs are not kept: {folder} {why}; set JAX_COMPILATION_CACHE_DIR to a folder that can be "
            "used, or JAX_ENABLE_COMPILATION_CACHE to false"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _suspended:
        _resume(str(folder))


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/gpt3-jax/programs/MACHINE``; without the variable, in ``~/.cache``."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    return root / "gpt3-jax" / "programs" / _machine()


def trim(folder: Path, max_bytes: int) -> None:
    """Deletes the least recently used files below `folder` until at most `max_bytes` remain. Files used in the last two
    days stay: one process of another run may have found them, and the next not yet.

    JAX can do this itself, but takes a lock at every look-up and writes a second file beside each program. If a process
    is killed between the two files, JAX stops writing.
    """
    found = []
    spared = time.time() - _SPARED_S
    for path in folder.rglob("*"):  # includes XLA's autotuning results for GPUs
        with contextlib.suppress(OSError):  # deleted meanwhile
            stat = path.stat()
            if not S_ISREG(stat.st_mode):
                continue
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    excess = sum(size for _, size, _ in found) - max_bytes
    for used, size, path in sorted(found):
        if excess <= 0 or used > spared:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            excess -= size


def _resume(folder: str) -> None:
    """Turns the cache on again in all processes, or logs why it stays off."""
    global _suspended, _settled
    _suspended, _settled = False, True
    _switch(True)
    if not _found_by_all():
        _switch(False)
        log.warning(
            f"compiled programs are not kept in {folder}: on {jax.default_backend()} the other processes do not "
            "find a program that process 0 has kept"
        )


def _switch(on: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", on)
    compilation_cache.reset_cache()  # JAX reads the setting only once


def _found_by_all() -> bool:
    """Whether every other process finds a program that process 0 has compiled and written."""
    threshold = getattr(jax.config, "jax_persistent_cache_min_compile_time_secs", _JAX_MIN_COMPILE_S)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    found: list[str] = []

    def note(event: str, **_: str | int) -> None:
        found.append(event)

    try:
        if is_lead():
            _compile_probe()
        everywhere(True, "keep a program")
        jax.monitoring.register_event_listener(note)
        if not is_lead():
            _compile_probe()
        return everywhere(is_lead() or _CACHE_HIT in found, "look for a program that was kept")
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)
        with contextlib.suppress(AttributeError):  # older versions cannot unregister a listener
            jax.monitoring.unregister_event_listener(note)


def _compile_probe() -> None:
    """Compiles a program over all devices, without running it."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    rows = jax.ShapeDtypeStruct((mesh.size, 2), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("devices")))
    jax.jit(lambda x: x.sum()).lower(rows).compile()


def _unusable(folder: Path) -> str:
    """Why the processes cannot use the folder, the same text in all of them; empty if they can. Also trims it."""
    token = secrets.token_hex(8)
    why = ""
    if not folder.is_absolute():
        why = "is in no home folder"
    elif is_lead():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / token).touch()
            trim(folder.parent, MAX_BYTES)
        except OSError as error:
            why = f"cannot be written ({error.strerror})"
    if jax.process_count() == 1:
        with contextlib.suppress(OSError):
            (folder / token).unlink(missing_ok=True)
        return why
    why, _, token = from_lead(f"{why}\n{token}").partition("\n")
    if not why and not everywhere((folder / token).exists()):
        why = "is not the same folder for all processes"
    if is_lead():
        with contextlib.suppress(OSError):
            (folder / token).unlink(missing_ok=True)
    return why


def _machine() -> str:
    """A name for the properties of the host that the CPU compiler depends on and that JAX's key may not include: the
    processor, its instruction sets, and the number of cores. A program compiled for another one might end in an illegal
    instruction."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = [platform.system(), platform.machine(), platform.processor(), str(cpus)]
    with contextlib.suppress(OSError):
        processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
        told += [line for line in processor.splitlines() if line.startswith(names)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
