"""Reads from JAX's profiler which operation ran on a device, and when.

On CPUs, as observed with jax 0.10.2 and 0.12.0.1, the plane ``/host:CPU`` has a line for each thread. Each operation
that an XLA thunk ran is an event with the statistics ``hlo_op`` and ``device_ordinal``; another event may mark its true
end. A loop is an event around those of its body, which may lie on other threads.

The formats of accelerators are known but were not observed. A GPU's plane ``/device:GPU:N`` has a line ``Stream #...``
for each stream. Its kernels have ``hlo_op``, but inside a CUDA graph perhaps only their own name (which does not
distinguish the loss's matmuls from others). A TPU's plane ``/device:TPU:N`` has a line ``XLA Ops``, whose events are
named by the instruction's text.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from gpt3_jax.errors import RunError

_DEVICE = re.compile(r"/device:(GPU|TPU):(\d+)")
_NAME = re.compile(r"%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Event:
    """One execution of an operation."""

    op: str
    """The instruction of the compiled program, or a kernel's own name."""
    start: float
    """Seconds, relative to an arbitrary origin."""
    end: float


def record(run: Callable[[], Any]) -> list[Event]:
    """Returns everything that the first device of this process ran in `run`. `run` must wait for the device.

    Raises:
        RunError: this version of JAX cannot read its profiles, or the profile holds no operations.
    """
    reader = getattr(jax.profiler, "ProfileData", None)
    if reader is None:
        raise RunError(
            f"jax {jax.__version__} has no jax.profiler.ProfileData to read a profile with; take a newer one"
        )
    with tempfile.TemporaryDirectory(prefix="gpt3-jax-bench-") as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's own calls are many, and not used
        jax.profiler.start_trace(folder, profiler_options=options)
        try:
            run()
        finally:
            jax.profiler.stop_trace()
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about its own types' missing module names
            found = [event for file in files for event in read(reader.from_file(str(file)).planes)]
    if not found:
        raise RunError("the profile holds no operations of a device that this reader knows; leave --profile out")
    return found


def read(planes: Iterable[Any]) -> Iterator[Event]:
    """The events of the first device, from planes in the format of `jax.profiler.ProfileData`."""
    planes = list(planes)
    devices = [(int(found[2]), found[1], plane) for plane in planes if (found := _DEVICE.fullmatch(plane.name))]
    if not devices:
        for plane in planes:
            if plane.name == "/host:CPU":
                yield from _host_events(plane)
        return
    _, kind, plane = min(devices, key=lambda device: device[0])
    for line in plane.lines:
        if line.name == "XLA Ops" if kind == "TPU" else line.name.startswith("Stream"):
            for event in line.events:
                stats = dict(event.stats)
                yield _event(event, str(stats.get("hlo_op") or event.name))


def _host_events(plane: Any) -> Iterator[Event]:
    """A thunk may continue in other threads after its own event. Then the event ``end: NAME``, whose consumer number is
    the first event's producer number, begins when the thunk is done."""
    found: list[tuple[int, Any, Any]] = []
    done: dict[Any, float] = {}
    for line in plane.lines:
        for event in line.events:
            stats = dict(event.stats)
            if "hlo_op" in stats:
                op = _event(event, str(stats["hlo_op"]))
                found.append((int(stats.get("device_ordinal", 0)), stats.get("_p"), op))
            elif event.name.startswith("end: ") and "_c" in stats:
                done[stats["_c"]] = event.start_ns / 1e9
    first = min((device for device, _, _ in found), default=0)
    for device, number, op in found:
        if device == first:
            yield dataclasses.replace(op, end=max(op.end, done.get(number, op.end)))


def _event(event: Any, op: str) -> Event:
    named = _NAME.match(op)
    return Event(named[1] if named else op, event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9)
