"""Stopping when asked, with one process (several: test_cluster_start.py)."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from gpt3_jax.cluster.stopping import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_loop_at_its_next_question(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with StopSignal() as stop:
        assert not stop.requested() and stop.reason == ""
        os.kill(os.getpid(), number)
        assert stop.requested() and stop.requested()
        assert stop.reason == number.name
    assert {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)} == before


def test_a_second_ctrl_c_leaves_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        assert "Ctrl-C again" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C did nothing")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_sigterm_does_not_kill_the_final_checkpoint() -> None:
    with StopSignal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()


def test_after_a_sigterm_the_first_ctrl_c_is_only_the_first(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # no KeyboardInterrupt: the final checkpoint is being saved
        assert stop.requested() and stop.reason == "SIGTERM"
        assert "Ctrl-C again" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def run() -> None:
        with StopSignal() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.requested()])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before, False]
