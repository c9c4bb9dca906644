"""The optimizer's steps: Adam in one call, tables by the rows that a batch reads, clipping."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

# Rows that are brought up to date at once after an epoch: 16 MB of each of their parts.
CHUNK_ELEMENTS = 1 << 22
# Steps after which a gradient moves a row no more: (0.9 / 0.999 ** 0.5) ** 512 is below 1e-23.
FADED = 512
MOMENTS = ("exp_avg", "exp_avg_sq")


def decay_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Groups of AdamW: matrices and tables decay; biases, LayerNorms and single numbers do not.

    A decay pulls towards 0, which for a gain, a temperature or a bias of scores is no small size.
    """
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        parts[parameter.dim() > 1].append(parameter)
    return [
        {"params": part, "weight_decay": decay if matrices else 0.0}
        for matrices, part in parts.items()
        if part
    ]


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """RecBole's optimizer; on a CPU, Adam takes all its steps in one call instead of hundreds.

    The steps are the same. On small batches the calls took a tenth of the training time.
    """
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    fits = all(p.device.type == "cpu" and p.is_floating_point() for p in parameters)
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        if type(optimizer) is kind and fits:
            return kind([{**group, "fused": True} for group in groups], fused=True)
    return optimizer


def clip_gradients(parameters: Iterable[torch.Tensor], **arguments: Any) -> None:
    """torch's ``clip_grad_norm_``, of sparse gradients too.

    Args:
        arguments: of ``clip_grad_norm_``.
    """
    held = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values = parameter.grad._values()
            parameter = torch.empty_like(values)
            parameter.grad = values
        held.append(parameter)
    torch.nn.utils.clip_grad_norm_(held, **arguments)


def lazy_tables(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Embedding]:
    """The tables of a model that `LazyRows` can step: all that it reads by rows, or none.

    An L2 penalty (``weight_decay`` of Adam, not AdamW) is part of every row's gradient, and other
    optimizers have no such steps: there the gradients are of whole tables.
    """
    decays = any(group.get("weight_decay") for group in optimizer.param_groups)
    plain = type(optimizer) is torch.optim.Adam and not decays
    if plain or type(optimizer) is torch.optim.AdamW:
        return getattr(model, "row_tables", list)()
    return []


def step_by_rows(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: dict[str, Any] | None
) -> "LazyRows | None":
    """`LazyRows` of the tables that a model reads by rows, None where there are none.

    Args:
        clip: arguments of ``clip_grad_norm_`` for the gradients before each step, or None.
    """
    tables = lazy_tables(model, optimizer)
    if not tables:
        return None
    if clip:  # before the rows are stepped
        parameters = list(model.parameters())
        optimizer.register_step_pre_hook(lambda *_: clip_gradients(parameters, **clip))
    return LazyRows(optimizer, tables)


def _put(table: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """``table[rows] = values``, each row once; NumPy copies rows several times faster on a CPU."""
    if table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64):
        table.detach().numpy()[rows.numpy()] = values.numpy()
    else:
        table.index_copy_(0, rows, values)


class LazyRows:
    """Takes the steps of Adam or AdamW on tables whose gradients are of single rows.

    Adam moves a row in the steps that have no gradient for it too, along its momentum, and AdamW
    shrinks it. All that a row missed is made up for when it is next read: in closed form, as
    between two gradients the moments fade in known ratios. So every row is where the steps of the
    whole table would have taken it (to the share of Adam's epsilon in a fading denominator), and a
    step touches no other. `settle_all` has to come before a table is read as a whole.

    The moments are in the state of the optimizer, under Adam's own names: after `settle_all` a
    checkpoint needs nothing else.

    Args:
        optimizer: torch's Adam or AdamW over all parameters; it steps the others.
        tables: read by calling them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tables: Iterable[nn.Embedding]) -> None:
        self.tables = [
            _Table(optimizer, group, table.weight)
            for table in tables
            for group in optimizer.param_groups
            if any(p is table.weight for p in group["params"])
        ]
        for table, state in zip(tables, self.tables, strict=True):
            table.sparse = True
            table.register_forward_pre_hook(state.before_reading)
        optimizer.register_step_pre_hook(self._step)

    def _step(self, *_: Any) -> None:
        for table in self.tables:
            gradient = table.weight.grad
            if gradient is not None:
                table.step(gradient.coalesce())
                table.weight.grad = None  # the optimizer passes over it

    def settle_all(self) -> None:
        """Bring every row up to date."""
        for table in self.tables:
            table.settle_all()


class _Table:
    def __init__(
        self, optimizer: torch.optim.Optimizer, group: dict[str, Any], weight: torch.Tensor
    ) -> None:
        self.optimizer, self.group, self.weight = optimizer, group, weight
        self._restart()

    def _restart(self) -> None:
        """From here on steps are counted anew: every row is up to date."""
        self.now = 0
        self.taken = torch.zeros(len(self.weight), dtype=torch.int32, device=self.weight.device)
        # A column for each step t, of a row that is up to date then: how far its momentum takes it
        # from there to now, in units of its first moment over the root of its second; and what is
        # left by now of the row, by decay, of its first moment and of its second.
        self.since = torch.tensor([[0.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
        beta1, beta2 = self.group["betas"]
        age = torch.arange(FADED, 0, -1, dtype=torch.float64)
        self.fading = (beta1 / beta2**0.5) ** age

    @property
    def state(self) -> dict[str, Any]:
        state = self.optimizer.state[self.weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(self.weight)
            state["exp_avg_sq"] = torch.zeros_like(self.weight)
        return state

    def before_reading(self, module: nn.Module, arguments: Sequence[torch.Tensor]) -> None:
        """Before rows ``arguments[0]`` ``(k,)`` are read, each once."""
        if module.training:
            self.settle(arguments[0])

    @torch.no_grad()
    def settle(self, rows: torch.Tensor) -> None:
        """Let rows ``(k,)``, each once, take the steps that they missed."""
        if not self.now:
            return
        taken = self.taken.index_select(0, rows)
        stale = (taken < self.now).nonzero().squeeze(1)
        if not len(stale):
            return
        rows, taken = rows.index_select(0, stale), taken.index_select(0, stale)
        state, like = self.state, self.weight
        first, second = (state[name].index_select(0, rows) for name in MOMENTS)
        since = self.since.to(like.device).index_select(1, taken)[:, :, None].to(like)
        moved, kept, kept_first, kept_second = since
        root = (1 - self.group["betas"][1] ** int(state["step"])) ** 0.5
        direction = first / second.sqrt().add_(self.group["eps"] * root)
        weight = like.index_select(0, rows).mul_(kept).addcmul_(direction, moved, value=-1)
        _put(like, rows, weight)
        _put(state["exp_avg"], rows, first.mul_(kept_first))
        _put(state["exp_avg_sq"], rows, second.mul_(kept_second))
        self.taken[rows] = self.now

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """One step of Adam.

        Args:
            gradient: sparse, its rows each once.
        """
        rows, values = gradient._indices()[0], gradient._values()
        self.settle(rows)
        state, group = self.state, self.group
        lr, eps, (beta1, beta2) = float(group["lr"]), group["eps"], group["betas"]
        state["step"] += 1
        count = int(state["step"])
        root = (1 - beta2**count) ** 0.5
        length = lr / (1 - beta1**count) * root
        shrunk = 1 - lr * group["weight_decay"]
        first, second = (state[name].index_select(0, rows) for name in MOMENTS)
        first.lerp_(values, 1 - beta1)
        second.mul_(beta2).addcmul_(values, values, value=1 - beta2)
        denominator = second.sqrt().add_(eps * root)
        weight = self.weight.index_select(0, rows).mul_(shrunk)
        weight.addcdiv_(first, denominator, value=-length)
        _put(self.weight, rows, weight)
        _put(state["exp_avg"], rows, first)
        _put(state["exp_avg_sq"], rows, second)
        self.now += 1
        self.taken[rows] = self.now
        self.since *= self.since.new_tensor([shrunk, shrunk, beta1, beta2])[:, None]
        self.since[0, -FADED:] += length * self.fading[-self.now :]
        self.since = torch.cat([self.since, self.since.new_tensor([[0.0], [1.0], [1.0], [1.0]])], 1)

    def settle_all(self) -> None:
        per_chunk = max(1, CHUNK_ELEMENTS // self.weight[0].numel())
        for rows in torch.arange(len(self.weight), device=self.weight.device).split(per_chunk):
            self.settle(rows)
        self._restart()
