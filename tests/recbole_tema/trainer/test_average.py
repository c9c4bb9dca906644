"""The moving average of the weights: its numbers, and that it is what is evaluated and saved."""

import copy

import pytest
import torch
from torch import nn

from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.evaluation.evaluator import evaluate_model, evaluation_data
from recbole_tema.trainer.average import WeightAverage
from recbole_tema.trainer.checkpoint import read_checkpoint
from recbole_tema.trainer.factory import build_trainer


def test_the_average_of_a_known_sequence():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    average.after_steps_of(optimizer)
    values = [4.0, 2.0, -1.0, 7.0] * 20
    wanted = None
    for number, value in enumerate(values, start=1):
        model.weight.data.fill_(value + 1)
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()  # to the value
        decay = min(0.8, number / (number + 10))
        wanted = value if wanted is None else decay * wanted + (1 - decay) * value
    with average.in_place():
        assert model.weight.item() == pytest.approx(wanted, abs=1e-5)
    assert model.weight.item() == values[-1]
    again = WeightAverage(copy.deepcopy(model), 0.8)
    again.load_state_dict(average.state_dict())
    for each in (average, again):
        each.update()
    assert torch.equal(again.tensors["weight"], average.tensors["weight"])


def test_the_average_is_what_is_evaluated_and_saved(settings):
    keys = {**settings, "ema_decay": 0.9, "epochs": 3}
    config = TemaConfig("TEMA", "tiny", config_dict=keys)
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    model = config.model_class(config, prepared.train_data.dataset)
    trainer = build_trainer(config, model, dataset)
    data = evaluation_data(config, dataset, prepared)
    steps = []  # what every step left, as a reference keeps it
    trainer.optimizer.register_step_post_hook(
        lambda *_: steps.append({n: p.detach().clone() for n, p in model.named_parameters()})
    )
    scores, at = [], []
    trainer.fit(
        prepared.train_data,
        data["valid"],
        callback_fn=lambda _, score: (scores.append(score), at.append(len(steps))),
    )
    best = scores.index(max(scores))
    wanted = dict(steps[0])
    for number, step in enumerate(steps[1 : at[best]], start=2):
        decay = min(0.9, number / (number + 10))
        wanted = {n: decay * wanted[n] + (1 - decay) * step[n] for n in wanted}
    saved = read_checkpoint(trainer.saved_model_file)["state_dict"]
    for name, value in wanted.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(dict(model.named_parameters())[name], steps[-1][name])
    result = trainer.evaluate(data["valid"], load_best_model=True)
    assert result["ndcg@3"] == pytest.approx(scores[best])
    assert result == trainer.evaluate(data["valid"], load_best_model=False)
    model.load_state_dict(saved)
    assert evaluate_model(model, data["valid"], config, dataset)[0] == result


@pytest.mark.parametrize(("model", "averages"), [("SASRec", False), ("TEMA", True)])
def test_a_model_without_the_key_has_no_average(settings, model, averages):
    config = TemaConfig(model, "tiny", config_dict={**settings, "ema_decay": 0.9})
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    network = config.model_class(config, prepared.train_data.dataset)
    trainer = build_trainer(config, network, dataset)
    trainer._train_epoch(prepared.train_data, 0)
    assert bool(trainer._average.tensors) == averages
