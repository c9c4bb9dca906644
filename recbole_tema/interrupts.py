"""Ctrl-C that is not lost.

Python drops a KeyboardInterrupt that is raised inside a destructor or a callback of the garbage
collector, with a line on standard error; training would go on as if nothing had been asked.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_asked = threading.Event()


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt as usual, and `check_interrupt` knows of it too.

    Only in the main thread, and where nobody else handles SIGINT; elsewhere nothing changes.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(number, frame):
        _asked.set()
        signal.default_int_handler(number, frame)

    _asked.clear()
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _asked.clear()


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if one was asked for and got lost."""
    if _asked.is_set():
        _asked.clear()
        raise KeyboardInterrupt
