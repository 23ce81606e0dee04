"""The time from a command to its first step, by phase."""

from __future__ import annotations

import logging

import pytest

from gpt3_jax.cluster import start_up


def test_what_is_said_is_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gpt3_jax"):
        start_up.mark("data")  # before `begin`: a call from Python
        start_up.begin()
        for phase in ("imports", "compiling", "compiling", "step"):
            start_up.mark(phase)
        start_up.say()
        start_up.mark("step")
        start_up.say()
    assert len(caplog.messages) == 1
    found = start_up.read(f"compiling\n{caplog.messages[0]}\nmore 1.0")
    assert found is not None and list(found) == ["imports", "compiling", "step"]
    assert found["imports"] > 0  # this process has run for a while
    assert start_up.read("nothing of the kind") is None
