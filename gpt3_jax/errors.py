"""The two ways a run can go wrong, as a person sees them: one line on stderr and an exit code."""

from __future__ import annotations


class UserError(Exception):
    """What the user wrote is wrong (exit code 2): names the thing, its value, what was expected, what to do."""

    exit_code = 2


class RunError(Exception):
    """Something failed while running (exit code 1): disk full, unreadable data, a loss that is not finite."""

    exit_code = 1
