"""An interrupt that Python swallows in a destructor is raised at the next check."""

import os
import signal

import pytest

from recbole_tema.interrupts import check_interrupt, interrupts_kept


class InterruptedWhenCollected:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the handler runs between two instructions of Python
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_lost_in_a_destructor_is_raised_at_the_next_check():
    with interrupts_kept():
        lost = InterruptedWhenCollected()
        del lost
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()
        check_interrupt()  # once is enough


def test_an_interrupt_is_raised_at_once_where_it_can_be():
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    check_interrupt()


def test_a_handler_of_somebody_else_stays():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGINT, mine)
    try:
        with interrupts_kept():
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)
