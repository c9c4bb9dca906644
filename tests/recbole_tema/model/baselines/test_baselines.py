"""Models of RecBole's that are computed at less work: the same losses, gradients and scores."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.utils import get_model

from recbole_tema import load_model, run_recbole_tema
from recbole_tema.config.registry import get_model_class
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.errors import ConfigError
from recbole_tema.model.baselines.feature_models import spread
from recbole_tema.model.by_length import length_groups
from recbole_tema.trainer.seeding import seeded
from tests.support.tiny_dataset import make_dataset

pytestmark = pytest.mark.long

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}
FEATURES = ("FDSA", "GRU4RecF", "SASRecF")
BPR = {
    "loss_type": "BPR",
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 2},
}
CASES = [
    *((name, {"pooling_mode": mode}) for name in FEATURES for mode in ("mean", "sum", "max")),
    *((name, BPR) for name in (*FEATURES, "BERT4Rec")),
    ("FDSA", {"selected_features": ["domain"]}),
    (
        "GRU4RecF",
        {"selected_features": ["price", "title", "domain"], "numerical_features": ["price"]},
    ),
    ("SASRecF", {"MAX_ITEM_LIST_LENGTH": 4}),
    ("BERT4Rec", {"MAX_ITEM_LIST_LENGTH": 4, "mask_ratio": 1.0, "ft_ratio": 0.0}),
    ("BERT4Rec", {"mask_ratio": 0.5, "ft_ratio": 0.0}),
    ("BERT4Rec", {"mask_ratio": 0.5, "ft_ratio": 1.0}),
    ("BERT4Rec", {"train_batch_size": 1}),
]


NUMBERS = {"selected_features": ["price", "stars"], "numerical_features": ["price", "stars"]}


@pytest.fixture
def priced(settings, tmp_path):
    """Keys of quick runs on a dataset whose items have two numbers and a vector each."""
    path = make_dataset(tmp_path) / "tiny.item"
    head, *rows = path.read_text().splitlines()
    rows = [f"{row}\t{0.5 + i % 4}\t{i % 5}\t0.5 {i}" for i, row in enumerate(rows)]
    head += "\tprice:float\tstars:float\tshape:float_seq"
    path.write_text("\n".join([head, *rows]) + "\n")
    return {**settings, "data_path": str(tmp_path), "train_batch_size": 64}


def both(model, settings, keys):
    """(our class's model, RecBole's with the same parameters, training batches)."""
    features = {"selected_features": ["title", "domain"]} if model in FEATURES else {}
    keys = {**settings, **NO_DROPOUT, **features, "MAX_ITEM_LIST_LENGTH": 12, **keys}
    known = TemaConfig(model, "tiny", None, None, None).final_config_dict
    config = TemaConfig(model, "tiny", None, {k: v for k, v in keys.items() if k in known}, None)
    found = create_dataset(config, config.model_class)
    prepared = data_preparation(config, found, config.model_class)
    train = prepared.train_data
    models = []
    for cls in (get_model_class(model), get_model(model)):
        with seeded(config):
            models.append(cls(config, train.dataset).to(config["device"]))
    ours, theirs = models
    assert type(ours) is not type(theirs)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])
    return ours, theirs, [batch.to(config["device"]) for batch in train]


@pytest.mark.parametrize(("model", "keys"), CASES)
def test_loss_and_gradients_are_recboles(model, keys, priced):
    ours, theirs, batches = both(model, priced, keys)
    lengths = {int(n) for batch in batches for n in batch["item_length"]}
    assert len(lengths) > (3 if "MAX_ITEM_LIST_LENGTH" in keys else 8)
    for batch in batches[:3]:
        losses = [network.train().calculate_loss(batch) for network in (ours, theirs)]
        if losses[1].isnan():  # BERT4Rec's where no step is masked
            assert losses[0].isnan()
            continue
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
        for network, loss in zip((ours, theirs), losses, strict=True):
            network.zero_grad()
            loss.backward()
        grads = {name: weight.grad for name, weight in ours.named_parameters()}
        for name, weight in theirs.named_parameters():
            torch.testing.assert_close(grads[name], weight.grad, rtol=1e-4, atol=1e-7)
        assert any(grad is not None and grad.abs().max() > 1e-4 for grad in grads.values())


@pytest.mark.parametrize(("model", "keys"), [case for case in CASES if case[0] in FEATURES])
def test_scores_are_recboles(model, keys, priced):
    ours, theirs, batches = both(model, priced, keys)
    with torch.no_grad():
        found = [network.eval().full_sort_predict(batches[0]) for network in (ours, theirs)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert found[0].std() > 0


def test_a_batch_without_a_masked_step_ends_in_recboles_own_words(settings):
    """RecBole's loss is then 0 / 0, and its trainer says so; nothing here hides it."""
    ours, theirs, batches = both("BERT4Rec", settings, {})
    batch = batches[0]
    batch["MASK_INDEX"].zero_()
    assert ours.calculate_loss(batch).isnan()
    assert theirs.calculate_loss(batch).isnan()


def test_in_mixed_precision_the_weights_of_the_masked_steps_sum_to_1(settings):
    ours, theirs, batches = both("BERT4Rec", settings, {"mask_ratio": 0.9, "ft_ratio": 0.0})
    for batch in batches[:3]:
        with torch.autocast("cpu", torch.bfloat16):
            losses = [network.calculate_loss(batch).item() for network in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=5e-4)


def test_gradients_of_features_do_not_depend_on_the_order_of_threads():
    """An item stands in many rows: its gradient has to be summed in one order."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, 300, 2, 64, generator=generator).requires_grad_()
    place = torch.randint(0, 300, (512, 20), generator=generator)
    weight = torch.randn(512, 20, 2, 64, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = [
            torch.autograd.grad((spread(table, place) * weight).sum(), table)[0] for _ in range(10)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(grad, found[0]) for grad in found)
    assert torch.equal(spread(table, place), table[0][place])


@pytest.mark.parametrize("model", ["FDSA", "BERT4Rec"])
def test_runs_from_the_name_and_repeats(model, settings):
    features = {"selected_features": ["title"]} if model in FEATURES else {}
    results = [run_recbole_tema(model, "tiny", config_dict={**settings, **features})]
    results += [run_recbole_tema(model, "tiny", config_dict={**settings, **features})]
    assert results[0]["test_result"] == results[1]["test_result"]
    assert results[0]["test_result"]["hit@5"] > 0
    assert type(load_model(results[0]["model_file"])[2]) is get_model_class(model)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_groups_hold_each_row_once_and_pad_less_than_twice(lengths):
    groups = [(rows.tolist(), longest) for rows, longest in length_groups(torch.tensor(lengths))]
    assert sorted(row for rows, _ in groups for row in rows) == list(range(len(lengths)))
    shortest = max(lengths) / 8  # of what is padded to less than twice its length
    for rows, longest in groups:
        assert longest == max(1, max(lengths[row] for row in rows))
        if longest > shortest:
            assert all(2 * lengths[row] >= longest - 1 for row in rows)


@pytest.mark.parametrize("model", FEATURES)
def test_a_number_among_the_features_is_embedded_as_recbole_embeds_it(model, priced):
    """Named in selected_features alone, or in numerical_features as RecBole wants it: the same."""
    keys = {**priced, "epochs": 1, "selected_features": ["price"], "hidden_size": 16}
    alone = run_recbole_tema(model, "tiny", config_dict=keys)
    both = run_recbole_tema(model, "tiny", config_dict={**keys, "numerical_features": ["price"]})
    assert alone["test_result"] == both["test_result"]
    config, dataset, network = load_model(alone["model_file"])
    assert config["numerical_features"] == ["price"]
    layer = network.feature_embed_layer
    items = torch.arange(1, 5)[None]
    _, found = layer(None, items)
    prices = dataset.item_feat["price"][items[0], 0]
    row = layer.float_embedding_table["item"].embedding.weight[1]
    assert torch.allclose(found["item"][0, :, 0], prices[:, None] * row), "price times a vector"


@pytest.mark.parametrize("model", [*FEATURES, "DIN", "DIEN"])
def test_two_numbers_have_a_vector_each(model, priced):
    keys = NUMBERS if model in FEATURES else {"numerical_features": ["price", "stars"]}
    keys = {**priced, "epochs": 1, "train_batch_size": 512, **keys}
    trained = run_recbole_tema(model, "tiny", config_dict=keys, saved=True)
    _, dataset, network = load_model(trained["model_file"])
    layer = getattr(network, "feature_embed_layer", None) or network.embedding_layer
    items = torch.arange(1, 5)[None]
    found = layer(torch.tensor([1]), items)[1]["item"]
    offsets = layer.float_field_offsets["item"]
    rows = layer.float_embedding_table["item"].embedding.weight[[int(o) + 1 for o in offsets]]
    for number, field in enumerate(layer.float_field_names["item"]):
        values = dataset.item_feat[field][items[0], 0]
        assert torch.allclose(found[0, :, number], values[:, None] * rows[number])


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        *(
            (name, {"selected_features": ["shape"]}, "'shape', which is of type float_seq.*: dom")
            for name in FEATURES
        ),
        ("S3Rec", {"item_attribute": "price"}, "'price', which is of type float; .*domain, title"),
        ("S3Rec", {"item_attribute": "shape"}, "'shape', which is of type float_seq"),
        ("TEMA", {"selected_features": ["price"]}, "'price', which is of type float; .*domain"),
        ("FM", {"numerical_features": ["title"]}, "'title', which is of type token_seq"),
        ("FM", {"numerical_features": ["timestamp"]}, "'timestamp', which orders the events"),
        ("DIN", {"numerical_features": ["colour"]}, "the field 'colour'"),
    ],
)
def test_a_field_that_a_model_cannot_read_is_named_with_those_that_it_can(
    priced, model, keys, message
):
    with pytest.raises(ConfigError, match=message) as caught:
        run_recbole_tema(model, "tiny", config_dict={**priced, **keys})
    assert "\n" not in str(caught.value)


def test_a_number_of_events_is_no_feature_of_a_candidate(priced, tmp_path):
    path = tmp_path / "tiny" / "tiny.inter"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{head}\trating:float", *(f"{row}\t3" for row in rows)]) + "\n")
    keys = {**priced, "numerical_features": ["rating"], "epochs": 1}
    with pytest.raises(ConfigError, match=r"would learn from the field 'rating' of tiny\.inter"):
        run_recbole_tema("FM", "tiny", config_dict=keys)
