"""Compiled programs are kept on disk: the second start of a run, or of its like, does not compile.

JAX's persistent compilation cache, in the user's cache folder. It is a property of the machine and not of a run, so
that JAX's own variables are its settings: JAX_COMPILATION_CACHE_DIR moves it, JAX_ENABLE_COMPILATION_CACHE=false turns
it off.

With several processes all of them must find a program, or none: they would go on with programs that were compiled at
different times, and on GPUs those that compile wait for each other's share of the tuning. JAX looks a program up in
each process and lets process 0 alone write. So a program that is found by one is found by all if

* their folder is one folder, which `enable` tries out;
* their keys are the same. A key is a digest of the program, the versions, the flags and the backend's, which
  `same_run` compares, and of the compiler's options and the devices, where JAX (0.10 to 0.12) keeps the process's own
  part out on GPUs and has none on TPUs. A CPU's key differs between processes: 0 would find what the others do not.
  `enable` tries this out too, with a small program, and leaves the cache off where the keys differ;
* nothing removes it between the one look and the other: `trim` spares what was used in the last two days.

The threshold of compile time and the writing itself concern process 0 only, and what is written during a start was
found by none at its beginning.
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
"""What is kept at most, over all machines that share the home folder."""
_MIN_COMPILE_S = 0.1
"""Programs that compile faster are not worth a file. JAX's default, 1 s, leaves out most of generation's."""
_JAX_MIN_COMPILE_S = 1.0
_SPARED_S = 2 * 86_400
"""What was used since is not removed. File systems note the time of a look-up once a day (relatime)."""
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


_suspended = False


def suspend() -> None:
    """With several processes, turns JAX's cache off until `enable` knows that it serves them all alike."""
    global _suspended
    if jax.process_count() > 1 and getattr(jax.config, "jax_enable_compilation_cache", True):
        _switch(False)
        _suspended = True


def enable() -> None:
    """Turns the cache on for this process. Call behind `start.start`, in all processes, before anything compiles.

    Where the user has chosen a folder of their own, or turned the cache off, that stays. A folder that cannot be
    written, or that does not serve all processes alike, leaves it off, with a warning.
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
    except RuntimeError:  # a user without a home folder, as in some containers; the others must hear of it too
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
    """``$XDG_CACHE_HOME/gpt3-jax/programs/MACHINE``, in ``~/.cache`` without it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    return root / "gpt3-jax" / "programs" / _machine()


def trim(folder: Path, max_bytes: int) -> None:
    """Removes what was used longest ago below `folder`, until the rest is no more than `max_bytes`, or of the last two
    days: another run may have found it in one of its processes, and not yet in the next.

    JAX could do so itself, with a lock that every look-up takes and a second file beside each program, of which a
    process killed between the two leaves one: then it stops writing.
    """
    found = []
    spared = time.time() - _SPARED_S
    for path in folder.rglob("*"):  # beside the programs also what XLA keeps of its tuning for GPUs
        with contextlib.suppress(OSError):  # gone meanwhile
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
    """Turns the cache on again in all processes, or says why it stays off."""
    _switch(True)
    if not _found_by_all():
        _switch(False)
        log.warning(
            f"compiled programs are not kept in {folder}: on {jax.default_backend()} a program that process 0 keeps is "
            "not found by the others"
        )


def _switch(on: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", on)
    compilation_cache.reset_cache()  # it looks at the setting once


def _found_by_all() -> bool:
    """Whether a program that process 0 has compiled and kept is then found by every other process."""
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
        with contextlib.suppress(AttributeError):  # older versions keep a listener for good
            jax.monitoring.unregister_event_listener(note)


def _compile_probe() -> None:
    """Compiles a program over all devices; it is never run."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    rows = jax.ShapeDtypeStruct((mesh.size, 2), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("devices")))
    jax.jit(lambda x: x.sum()).lower(rows).compile()


def _unusable(folder: Path) -> str:
    """Why the processes cannot use the folder, the same in all of them; empty when they can. Trims it on the way."""
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
    """A name for what the CPU compiler looks at beside the program, and JAX's key may leave out: the processor, with
    its instruction sets, and how many of them share the work. A program of another one might end in an illegal
    instruction."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = [platform.system(), platform.machine(), platform.processor(), str(cpus)]
    with contextlib.suppress(OSError):
        processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
        told += [line for line in processor.splitlines() if line.startswith(names)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
