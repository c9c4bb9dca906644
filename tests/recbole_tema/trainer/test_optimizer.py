import copy

import pytest
import torch
from recbole.trainer import Trainer

from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.trainer.factory import build_trainer


@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd"])
def test_steps_are_those_of_recboles_optimizer(settings, learner):
    keys = {**settings, "learner": learner, "weight_decay": 0.01}
    config = TemaConfig("TEMA", "tiny", config_dict=keys)
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    ours = config.model_class(config, prepared.train_data.dataset).double()
    theirs = copy.deepcopy(ours)
    optimizers = (
        build_trainer(config, ours, dataset).optimizer,
        Trainer(config, theirs).optimizer,
    )
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
