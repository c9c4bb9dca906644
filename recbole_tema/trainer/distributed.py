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
from recbole_tema.trainer.optimizer import clip_gradients

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
        self.model, self.share, self.clip = model, share, clip
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)

    def before_steps_of(self, optimizer: torch.optim.Optimizer) -> None:
        """Average before every step of ``optimizer`` from now on."""
        optimizer.register_step_pre_hook(self._average)

    def _average(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parameters = [p for p in parameters if p.requires_grad]
        by_row = {m.weight for m in self.model.modules() if getattr(m, "sparse", False)}
        rows = [_rows_of_all(p) if p in by_row else None for p in parameters]
        parts = [_whole(p, its) for p, its in zip(parameters, rows, strict=True)]
        # Which parameters have a gradient anywhere: an optimizer passes over those without.
        there = torch.tensor([float(p.grad is not None) for p in parameters])
        flat = torch.cat([*(part.reshape(-1) for part in parts), there.to(parts[0])])
        flat[: -len(parameters)] *= self.share() / world_size()
        dist.all_reduce(flat)
        *flats, there = flat.split([*(part.numel() for part in parts), len(parameters)])
        for parameter, its, part, mean, found in zip(
            parameters, rows, parts, flats, there.tolist(), strict=True
        ):
            mean = mean.view_as(part)
            if its is not None:
                mean = torch.sparse_coo_tensor(
                    its[None], mean, parameter.shape, is_coalesced=True, check_invariants=False
                )
            parameter.grad = mean if found else None
        if self.clip:
            clip_gradients(parameters, **self.clip)


def _whole(parameter: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """This process's gradient of a parameter, or of its ``rows`` alone; 0 where it has none."""
    gradient = parameter.grad
    if rows is None:
        return torch.zeros_like(parameter) if gradient is None else gradient
    whole = parameter.new_zeros(len(rows), *parameter.shape[1:])
    if gradient is not None:
        whole.index_copy_(0, torch.searchsorted(rows, gradient._indices()[0]), gradient._values())
    return whole


def _rows_of_all(parameter: torch.Tensor) -> torch.Tensor:
    """``(k,)`` ascending: the rows of a parameter that have a gradient in any process."""
    if parameter.grad is not None:
        parameter.grad = parameter.grad.coalesce()
    own = torch.zeros(0, dtype=torch.long, device=parameter.device)
    own = own if parameter.grad is None else parameter.grad._indices()[0]
    size = own.new_tensor([len(own)])
    sizes = [torch.empty_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    longest = max(map(int, sizes))
    padded = [own.new_zeros(longest) for _ in sizes]
    dist.all_gather(padded, torch.cat([own, own.new_zeros(longest - len(own))]))
    return torch.unique(
        torch.cat([part[:count] for part, count in zip(padded, map(int, sizes), strict=True)])
    )


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
