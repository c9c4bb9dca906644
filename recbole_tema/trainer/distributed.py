"""Training in several processes: how they start and end, who is who, what they tell each other.

One process is enough for every function here: it is the first of one.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recbole_tema.errors import ConfigError, TemaError, TrainingError

Result = TypeVar("Result")


def rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and reports."""
    return rank() == 0


def from_main(make: Callable[[], Result]) -> Result:
    """What ``make()`` gives in the first process, in all of them; an error of it too.

    Raises:
        TemaError: ``make`` raised it.
    """
    if world_size() == 1:
        return make()
    box: list[tuple[Any, TemaError | None]] = [(None, None)]
    if is_main():
        try:
            box = [(make(), None)]
        except TemaError as error:
            box = [(None, error)]
    dist.broadcast_object_list(box, src=0)
    value, error = box[0]
    if error is not None:
        raise error
    return value


def of_all(value: Result) -> list[Result]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def joined(array: np.ndarray, device: torch.device) -> np.ndarray:
    """The largest value of each cell among all processes: each has -1 in what is not its own."""
    if world_size() == 1:
        return array
    tensor = torch.from_numpy(array).to(device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.cpu().numpy()


def same_statistics(model: nn.Module) -> None:
    """Give every process the first one's running means of batch normalisation."""
    if world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


class SilentBoard:
    """A TensorBoard that writes nothing: of several processes one writes."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


class SharedGradients:
    """Averages the gradients over all processes before each step of an optimizer.

    One sum over all parameters, after the backward pass, whatever loss or trainer made them: so
    every trainer of RecBole is served, and parts of a model that an ablation leaves unused too.

    Args:
        model: gets the first process's parameters. share: gives what this process's loss counts
            for (`SequenceTrainLoader.share`). clip: arguments of ``clip_grad_norm_``, or None.
    """

    def __init__(
        self, model: nn.Module, share: Callable[[], float], clip: dict[str, Any] | None = None
    ) -> None:
        self.share, self.clip = share, clip
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)

    def before_steps_of(self, optimizer: torch.optim.Optimizer) -> None:
        """Average before every step of ``optimizer`` from now on."""
        optimizer.register_step_pre_hook(self._average)

    def _average(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parameters = [p for p in parameters if p.requires_grad]
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters
        ]
        # Which parameters have a gradient anywhere: an optimizer passes over those without.
        there = torch.tensor([float(p.grad is not None) for p in parameters])
        flat = torch.cat([*parts, there.to(parts[0])])
        flat[: -len(parameters)] *= self.share() / world_size()
        dist.all_reduce(flat)
        *parts, there = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, part, found in zip(parameters, parts, there.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if found else None
        if self.clip:
            torch.nn.utils.clip_grad_norm_(parameters, **self.clip)


def join_group(config: dict, has_gpu: bool) -> None:
    """Make this process one of its group; RecBole asks for nccl also where there is no CUDA.

    Raises:
        ConfigError: the first process cannot be reached, or its port is taken.
    """
    # Torchrun has a store of its own on this port.
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    address = f"tcp://{config['ip']}:{config['port']}"
    try:
        dist.init_process_group(
            backend="nccl" if has_gpu else "gloo",
            rank=config["local_rank"] + config["offset"],
            world_size=config["world_size"],
            init_method="env://" if torchrun else address,
        )
    except (RuntimeError, ValueError) as error:
        words = str(error).splitlines()[0]
        raise ConfigError(f"the processes cannot meet at {address} ({words})") from error


def leave_group() -> None:
    """End the group of this process, if it is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(run: Callable[..., object], keys: dict, *arguments: Any) -> None:
    """Start ``nproc`` processes that each call ``run(keys, *arguments)``, and wait for them.

    Args:
        run: a function of a module; its keys have `local_rank` too.
        keys: as `launch_keys` gives them.

    Raises:
        TemaError: a process raised it. TrainingError: a process was killed; the others are ended.
    """
    from torch.multiprocessing import get_context
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    # Its warning that it ends the other processes is no news beside the error.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    errors = get_context("spawn").SimpleQueue()
    try:
        spawn(_process, (run, keys, arguments, errors), nprocs=keys["nproc"], join=True)
    except ProcessExitedException as error:
        told = _first_error(errors)
        if told is not None and not error.signal_name:
            raise told from None
        how = error.signal_name or f"exit code {error.exit_code}"
        raise TrainingError(
            f"process {error.error_index + 1} of {keys['nproc']} ended ({how}), so the others "
            "were ended too; the same command with --resume=True goes on from the last epoch"
        ) from None
    except ProcessRaisedException as error:
        told = _first_error(errors)
        raise (told or TrainingError(str(error))) from None


def _first_error(errors: Any) -> TemaError | None:
    return None if errors.empty() else errors.get()


def _process(
    local_rank: int,
    run: Callable[..., object],
    keys: dict[str, Any],
    arguments: Sequence[Any],
    errors: Any,
) -> None:
    try:
        run({**keys, "local_rank": local_rank}, *arguments)
    except TemaError as error:
        errors.put(error)
        raise SystemExit(2) from None
    except RuntimeError as error:
        words = str(error)
        if "gloo" not in words and "NCCL" not in words:
            raise
        # Another process is gone; its own message says more, and comes first.
        lost = TrainingError(f"another process is gone ({words.splitlines()[0]})")
        errors.put(lost)
        raise SystemExit(3) from None
    finally:
        with suppress(RuntimeError):
            leave_group()
