"""Compiled programs are kept on disk: the second start of a run, or of its like, does not compile.

JAX's persistent compilation cache, in the user's cache folder. It is a property of the machine and not of a run, so
that JAX's own variables are its settings: JAX_COMPILATION_CACHE_DIR moves it, JAX_ENABLE_COMPILATION_CACHE=false turns
it off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG

import jax

from gpt3_jax.cluster.agreement import everywhere, from_lead, is_lead

MAX_BYTES = 2 * 2**30
"""What is kept at most, over all machines that share the home folder."""
_MIN_COMPILE_S = 0.1
"""Programs that compile faster are not worth a file. JAX's default, 1 s, leaves out most of generation's."""
_JAX_MIN_COMPILE_S = 1.0


def enable(say: Callable[[str], None]) -> None:
    """Turns the cache on for this process. Call behind `start.start`, in all processes, before anything compiles.

    Where the user has chosen a folder of their own, or turned the cache off, that stays. A folder that cannot be
    written, or that not all processes share, leaves it off, which `say` is told in one line. (Process 0 alone writes;
    if others did not find what it finds, they would compile alone what GPU processes may share out to tune.)
    """
    # Flags that JAX's type stubs leave out.
    if not getattr(jax.config, "jax_enable_compilation_cache", True):
        return
    if getattr(jax.config, "jax_persistent_cache_min_compile_time_secs", None) == _JAX_MIN_COMPILE_S:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_S)
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    try:
        folder = default_folder()
    except RuntimeError:  # a user without a home folder, as in some containers; the others must hear of it too
        folder = Path("~/.cache/gpt3-jax")
    why = _unusable(folder)
    if why:
        say(
            f"compiled programs are not kept: {folder} {why}; set JAX_COMPILATION_CACHE_DIR to a folder that can be "
            "used, or JAX_ENABLE_COMPILATION_CACHE to false"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/gpt3-jax/programs/MACHINE``, in ``~/.cache`` without it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    return root / "gpt3-jax" / "programs" / _machine()


def trim(folder: Path, max_bytes: int) -> None:
    """Removes what was used longest ago below `folder`, until the rest is no more than `max_bytes`.

    JAX could do so itself, with a lock that every look-up takes and a second file beside each program, of which a
    process killed between the two leaves one: then it stops writing.
    """
    found = []
    for path in folder.rglob("*"):  # beside the programs also what XLA keeps of its tuning for GPUs
        with contextlib.suppress(OSError):  # gone meanwhile
            stat = path.stat()
            if not S_ISREG(stat.st_mode):
                continue
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    excess = sum(size for _, size, _ in found) - max_bytes
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            excess -= size


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
