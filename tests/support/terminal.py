"""A terminal for programs under test: what they write to it can be read as it stands there."""

import os


def open_terminal() -> tuple[int, int]:
    """(what is shown, to read; the program's end) of a terminal of 40 rows and 120 columns."""
    import fcntl
    import struct
    import termios

    screen, terminal = os.openpty()
    # A new one has no rows, and a bar stays away from the last.
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    return screen, terminal
