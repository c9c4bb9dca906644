"""The device that a model computes on."""

from typing import TYPE_CHECKING

from recbole_tema.errors import ConfigError

if TYPE_CHECKING:
    import torch


def find_device(name: "str | torch.device" = "auto") -> "torch.device":
    """The torch device `name`: cpu, cuda, cuda:1, mps, ...; auto is the GPU where there is one.

    Raises:
        ConfigError: no such device here.
    """
    import torch  # slow to import, and commands that compute nothing name devices too

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        # PyTorch has no CUDA: an AssertionError. No such name, no such GPU: a RuntimeError.
        words = str(error).splitlines()[0]
        found = f"device {name!r} cannot be used here ({words})"
        raise ConfigError(f"{found}; use cpu, or a device that this machine has") from error
    return device
