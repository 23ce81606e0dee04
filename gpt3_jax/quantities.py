"""Formats bytes, counts, durations and tables for the user."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def size(n: float) -> str:
    """Bytes in GiB or MiB, as device capacities are given."""
    if abs(n) >= 2**30:
        return f"{n / 2**30:,.2f} GiB"
    return f"{n / 2**20:,.1f} MiB" if abs(n) >= 2**20 else f"{n:,.0f} B"


def count(n: float) -> str:
    """A large number with its unit: 174.6B, 3.1M."""
    for unit, value in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= value:
            return f"{n / value:,.2f}".rstrip("0").rstrip(".") + unit
    return f"{n:,.0f}"


def duration(seconds: float) -> str:
    """A predicted time in a readable unit."""
    for unit, value in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * value:
            return f"{seconds / value:,.1f} {unit}"
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.1f} ms"


def measured(seconds: float) -> str:
    """A measured time to three digits, in units down to microseconds."""
    if seconds >= 120:
        return duration(seconds)
    for unit, value in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= value:
            amount = seconds / value
            digits = len(f"{amount:.0f}")
            return f"{amount:.{max(0, 3 - digits)}f} {unit}"
    return f"{seconds * 1e6:,.0f} µs"


def share(part: float, whole: float) -> float:
    """A fraction; 0 if `whole` is 0."""
    return part / whole if whole and math.isfinite(whole) else 0.0


def grid(rows: Iterable[Sequence[str]], head: Sequence[str] = (), left: int = 1) -> str:
    """Aligns columns: the first `left` to the left, the others to the right."""
    rows = [list(row) for row in ([head, *rows] if head else rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
