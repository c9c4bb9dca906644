import copy

import pytest
import torch
from recbole.trainer import Trainer

from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.trainer.factory import build_trainer
from recbole_tema.trainer.optimizer import LazyRows, clip_gradients


def recboles_trainer(config, model):
    """RecBole's own; its AdamW takes nothing of gains, biases and single vectors here."""
    trainer = Trainer(config, model)
    if config["learner"] == "adamw":
        spared = ("bias", "norm.weight", "missing", "log_scale", "repeat")
        parts = {False: [], True: []}
        for name, parameter in model.named_parameters():
            parts[name.endswith(spared)].append(parameter)
        groups = [{"params": parts[False]}, {"params": parts[True], "weight_decay": 0.0}]
        keys = {"lr": config["learning_rate"], "weight_decay": config["weight_decay"]}
        trainer.optimizer = torch.optim.AdamW(groups, **keys)
    return trainer


@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd"])
def test_steps_are_those_of_recboles_optimizer(settings, learner):
    keys = {"learner": learner, "weight_decay": 0.01, "similarity": "cosine", "repeat_bias": True}
    keys = {**settings, **keys}
    config = TemaConfig("TEMA", "tiny", config_dict=keys)
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    ours = config.model_class(config, prepared.train_data.dataset).double()
    theirs = copy.deepcopy(ours)
    other = recboles_trainer(config, theirs).optimizer
    optimizers = build_trainer(config, ours, dataset).optimizer, other
    assert type(optimizers[0]) is type(optimizers[1])
    assert bool(optimizers[0].param_groups[0].get("fused")) == (learner != "sgd")
    for seed in range(5):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12)


def tables_and(learner, n_rows=50, **keys):
    """(the table alone, its optimizer), twice: stepped lazily by rows, and as a whole."""
    found = []
    for lazily in (True, False):
        torch.manual_seed(3)
        table = torch.nn.Embedding(n_rows, 4).double()
        optimizer = learner(table.parameters(), **keys)
        found.append((table, optimizer, LazyRows(optimizer, [table]) if lazily else None))
    return found


def train(table, optimizer, steps, rows_of):
    """Steps with the gradient of a sum of squares of some rows."""
    for step in range(steps):
        optimizer.zero_grad()
        wanted = torch.sin(torch.arange(4.0) + step).double()
        (table(rows_of(step)) - wanted).pow(2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("learner", "keys"),
    [
        (torch.optim.Adam, {"lr": 0.05}),
        (torch.optim.Adam, {"lr": 0.05, "fused": True}),
        (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3}),
        (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3, "fused": True}),
    ],
)
def test_lazy_steps_end_where_those_of_the_whole_table_do(learner, keys):
    """Rows read often, seldom, once at the start and never; two epochs of 700 steps."""

    def rows_of(step):
        rare = [10 + step // 97 % 20] if step % 97 == 0 else []
        return torch.tensor([step % 5, *rare, *([40, 41] if step == 1 else [])])

    lazy, whole = tables_and(learner, **keys)
    for _ in range(2):
        for table, optimizer, rows in (lazy, whole):
            train(table, optimizer, 700, rows_of)
            if rows:
                rows.settle_all()
        torch.testing.assert_close(lazy[0].weight, whole[0].weight, rtol=0, atol=1e-6)
    states = [optimizer.state[table.weight] for table, optimizer, _ in (lazy, whole)]
    assert states[0].keys() == states[1].keys() and states[0]["step"] == states[1]["step"]
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-6, atol=1e-12)


def test_where_every_row_is_read_a_step_is_that_of_sparse_adam():
    (table, optimizer, _), _ = tables_and(torch.optim.Adam, lr=0.05)
    theirs, _, _ = tables_and(torch.optim.Adam, lr=0.05)[1]
    theirs.sparse = True
    sparse = torch.optim.SparseAdam(theirs.parameters(), lr=0.05)
    for one, step in ((table, optimizer), (theirs, sparse)):
        train(one, step, 5, lambda step: torch.arange(50))
    torch.testing.assert_close(table.weight, theirs.weight, rtol=0, atol=1e-6)


def test_rows_that_are_not_read_are_left_alone():
    (table, optimizer, rows), _ = tables_and(torch.optim.AdamW, lr=0.05, weight_decay=0.3)
    train(table, optimizer, 3, lambda step: torch.tensor([1, 2]))
    state = optimizer.state[table.weight]
    parts = [table.weight, state["exp_avg"], state["exp_avg_sq"]]
    before = [part.clone() for part in parts]
    train(table, optimizer, 3, lambda step: torch.tensor([7, 30]))
    for part, was in zip(parts, before, strict=True):
        same = (part == was).all(1)
        assert not same[[7, 30]].any() and same.sum() == 48
    rows.settle_all()
    assert (table.weight != before[0]).any(1).all()  # weight decay


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
def test_gradients_of_rows_are_clipped_with_the_others(norm_type):
    torch.manual_seed(2)
    parameters = [torch.nn.Parameter(torch.randn(6, 3)), torch.nn.Parameter(torch.randn(4))]
    sparse = torch.sparse_coo_tensor([[4, 1, 4]], torch.randn(3, 3), (6, 3))
    gradients = [sparse.to_dense(), torch.randn(4)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm=0.7, norm_type=norm_type)
    wanted = [parameter.grad for parameter in parameters]
    parameters[0].grad, parameters[1].grad = sparse, gradients[1].clone()
    clip_gradients(parameters, max_norm=0.7, norm_type=norm_type)
    torch.testing.assert_close(parameters[0].grad.to_dense(), wanted[0])
    torch.testing.assert_close(parameters[1].grad, wanted[1])


SAMPLED = {"full_softmax_items": 5, "sampled_softmax_items": 6, "clip_grad_norm": {"max_norm": 0.2}}


@pytest.mark.parametrize(
    ("keys", "lazy"),
    [
        ({"learner": "adam", "selected_features": ["title"]}, True),
        ({"learner": "adamw", "weight_decay": 0.1}, True),
        ({"learner": "adam", "weight_decay": 0.1}, False),
        ({"learner": "adam", "ema_decay": 0.9}, False),
        ({"learner": "sgd"}, False),
        ({"learner": "adagrad"}, False),
        ({"learner": "rmsprop"}, False),
    ],
    ids=str,
)
def test_an_epoch_of_a_sampled_softmax_is_that_of_recboles_optimizer(settings, keys, lazy):
    keys = {**settings, **SAMPLED, "train_batch_size": 16, "learning_rate": 0.01, **keys}
    config = TemaConfig("TEMA", "tiny", config_dict=keys)
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    ours = config.model_class(config, prepared.train_data.dataset).double()
    theirs = copy.deepcopy(ours)
    trainers = build_trainer(config, ours, dataset), recboles_trainer(config, theirs)
    assert [table.sparse for table in ours.row_tables()] == [lazy] * len(ours.row_tables())
    for trainer in trainers:
        prepared.train_data.set_epoch(0)
        torch.manual_seed(1)
        trainer._train_epoch(prepared.train_data, 0)
    # Of a step of 0.01: where a gradient is as small as Adam's epsilon, that fades otherwise.
    mine, other = (model.item_embedding.weight for model in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
    losses, batch = [], next(iter(prepared.train_data))
    for model in (ours.eval(), theirs.eval()):
        torch.manual_seed(2)
        losses.append(sum(model.calculate_loss(batch)))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
