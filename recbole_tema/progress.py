"""Progress bars: on a terminal with rate and time left, in files and pipes nothing."""

from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """tqdm's bar, which a file or pipe does not get: there each step would be one more line."""

    def __init__(self, *args: Any, disable: bool | None = False, **options: Any) -> None:
        # For tqdm, None is: disabled where the output is no terminal.
        super().__init__(*args, **options, disable=disable or None)


class PassingBar(ProgressBar):
    """A bar that leaves no line behind, as a line of results follows."""

    def __init__(self, *args: Any, leave: bool | None = False, **options: Any) -> None:
        super().__init__(*args, leave=leave, **options)
