"""A moving average of the weights, which is evaluated and saved in place of the last step's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

# Early steps count less: after t of them the decay is at most t / (t + WARM_UP).
WARM_UP = 10


class WeightAverage:
    """An exponential moving average over the optimizer's steps (Polyak averaging).

    Frozen features are no weights: only what is trained is held twice.

    Args:
        model: the weights of it are averaged. decay: share of the average that each step keeps, 0
            or None for no average at all.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model, self.decay = model, decay or 0.0
        self.steps = 0
        self.tensors: dict[str, torch.Tensor] = {}

    def after_steps_of(self, optimizer: torch.optim.Optimizer) -> None:
        """Count each step of an optimizer."""
        if self.decay:
            optimizer.register_step_post_hook(lambda *_: self.update())

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights that there are now."""
        self.steps += 1
        now = {n: p for n, p in self.model.named_parameters() if p.is_floating_point()}
        if not self.tensors:
            self.tensors = {name: value.detach().clone() for name, value in now.items()}
            return
        decay = min(self.decay, self.steps / (self.steps + WARM_UP))
        held = [self.tensors[name] for name in now]
        get_ema_multi_avg_fn(decay)(held, [p.detach() for p in now.values()], self.steps)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights, and afterwards its own again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, weight in self.model.named_parameters():
            if name in self.tensors:
                weight.data, self.tensors[name] = self.tensors[name], weight.data

    def forget(self) -> None:
        """The model's own weights count from here on: they were loaded."""
        self.tensors, self.steps = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs; empty without an average."""
        return {"steps": self.steps, "tensors": self.tensors} if self.tensors else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        device = next(self.model.parameters()).device
        self.steps = state.get("steps", 0)
        self.tensors = {n: value.to(device) for n, value in state.get("tensors", {}).items()}
