"""Signals are remembered and obeyed between steps."""

import os
import signal

import pytest

from pefx.training.interrupt import Interrupt


def test_sigterm_is_remembered_and_the_old_handler_returns() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt
        assert not interrupt.by(3)
        assert interrupt.exit_code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt
        assert interrupt.by(3)
        assert interrupt.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
