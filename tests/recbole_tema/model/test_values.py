"""Values of the models' keys that are refused, and that are not."""

import pytest

from recbole_tema.errors import ConfigError
from tests.recbole_tema.model.test_models import build


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fusion": "add"}, "fusion is 'add'"),
        ({"similarity": "euclid"}, "similarity"),
        ({"use_intra": False, "use_inter": False}, "no thread is left"),
        ({"window_stride": 9}, "window_stride is 9"),
        ({"n_heads": 3}, "n_heads .3. does not divide"),
        ({"n_layers": 0}, "n_layers is 0.*integer >= 1"),
        ({"n_heads": 0}, "n_heads is 0.*integer >= 1"),
        ({"hidden_size": 0}, "hidden_size is 0.*integer >= 1"),
        ({"temperature": 0}, "temperature is 0.*number > 0"),
        ({"hidden_act": "sigmoid"}, "hidden_act is 'sigmoid'.*gelu, relu, swish, tanh"),
        ({"sampled_softmax_items": 0}, "sampled_softmax_items is 0"),
        ({"sampled_softmax_power": -1}, "sampled_softmax_power is -1.*>= 0"),
        ({"sampled_softmax_domains": "both"}, "is 'both'.*all, balanced, own"),
        ({"window_stride": "abc"}, "window_stride is 'abc'.*integer >= 1, or none"),
        ({"window_stride": 0}, "window_stride is 0"),
        ({"window_stride": 2.5}, "window_stride is 2.5"),
        ({"item_dropout_prob": -1}, "item_dropout_prob is -1"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0"),
        ({"intra_weight": -0.1}, "intra_weight is -0.1.*>= 0"),
        ({"learner": "sparse_adam"}, "learner is 'sparse_adam'"),
        ({"loss_type": "BPR"}, "loss_type is 'BPR'.*CE"),
        (
            {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}},
            "train_neg_sample_args.*none, as loss_type is CE",
        ),
    ],
)
def test_bad_values(settings, keys, message):
    with pytest.raises(ConfigError, match=message):
        build(settings, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss_type": "BPR"}, "loss_type is 'BPR'.*BCE or CE"),
        ({"tau": 0}, "tau is 0"),
        ({"alpha": -1}, "alpha is -1"),
        ({"llm_size": 0}, "llm_size is 0"),
        ({"train_neg_sample_args": {"sample_num": 5}}, "train_neg_sample_args.*'sample_num': 1"),
        ({"train_neg_sample_args": {"distribution": "popularity"}}, "train_neg_sample_args"),
        ({"train_neg_sample_args": {"dynamic": True}}, "train_neg_sample_args"),
        ({"train_neg_sample_args": None}, "train_neg_sample_args"),
    ],
)
def test_bad_values_of_llm4cdsr(settings, keys, message):
    with pytest.raises(ConfigError, match=message):
        build(settings, "LLM4CDSR", **{"loss_type": "BCE", **keys})


def test_negatives_may_be_spelt_out(settings):
    spelt = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False}
    build(settings, "LLM4CDSR", loss_type="BCE", train_neg_sample_args=spelt)
    build(settings, "LLM4CDSR", loss_type="BCE", train_neg_sample_args={"sample_num": 1})
