"""File permissions that hold for a program that root starts, too: ``python unprivileged.py PROGRAM ARGUMENTS``."""

from __future__ import annotations

import ctypes
import os
import sys

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


def command(program: list[str]) -> list[str]:
    """The command line that runs `program` so that it may not read and write what modes forbid."""
    return [sys.executable, __file__, *program]


if __name__ == "__main__":
    if os.geteuid() == 0:
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                raise SystemExit("root's capabilities cannot be dropped")
    os.execv(sys.argv[1], sys.argv[1:])
