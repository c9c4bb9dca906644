import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.loader import TARGET_SEQ
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.model.abstract_recommender import REPEAT_UNIT
from recbole_tema.model.llm4cdsr import Adapter
from recbole_tema.model.packing import Layout
from tests.support.tiny_dataset import make_dataset, write


def build(settings, model="TEMA", name="tiny", **keys):
    config = TemaConfig(model, name, config_dict={**settings, **keys})
    dataset = create_dataset(config, config.model_class)
    prepared = data_preparation(config, dataset, config.model_class)
    torch.manual_seed(0)
    return config.model_class(config, prepared.train_data.dataset), prepared, dataset


def total(loss):
    return sum(loss) if isinstance(loss, tuple) else loss


TEMA_SWITCHES = [
    {},
    {"use_tags": False},
    {"use_id": False},
    {"use_text": False},
    {"use_intra": False},
    {"use_inter": False},
    {"tag_weighting": "binary"},
    {"tag_weighting": "raw", "tag_table": True, "feature_whitening": "pca"},
    {"fusion": "gate"},
    {"fusion": "concat"},
    {"similarity": "cosine"},
    {"share_intra": True},
    {"full_softmax_items": 5, "sampled_softmax_items": 20},
    {"full_softmax_items": 5, "sampled_softmax_items": 20, "use_intra": False},
    {"use_tags": False, "use_text": False, "id_init": "normal", "use_intra": False},
    {"selected_features": ["title", "domain"]},
    {"selected_features": ["tags"], "use_id": False, "use_tags": False, "use_text": False},
    {"selected_features": ["title"], "full_softmax_items": 5, "sampled_softmax_items": 20},
    {"tag_table": True, "full_softmax_items": 5, "sampled_softmax_items": 20},
]


@pytest.mark.parametrize("keys", TEMA_SWITCHES, ids=str)
@pytest.mark.parametrize("name", ["tiny", "three"])
def test_tema_trains_with_every_switch(settings, name, keys):
    model, prepared, _ = build(settings, name=name, **keys)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = next(iter(prepared.train_data))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = total(model.calculate_loss(batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert not unused
    check_scores(model, prepared)


def test_a_table_of_tags_is_added_to_their_frozen_vectors(settings):
    model = build(settings, tag_table=True, fusion="sum")[0].eval()
    table, (tag_ids, weights) = model.projections["tag_table"], (model.tag_table_ids,
        model.tag_table_weights)  # fmt: skip
    torch.nn.init.normal_(table.missing)
    with torch.no_grad():
        learned = (table.vectors.weight[tag_ids] * weights[..., None]).sum(1)
        learned = torch.where((tag_ids > 0).any(1)[:, None], learned, table.missing)
        whole = model.item_vectors()
        table.vectors.weight.zero_()
        table.missing.zero_()
        assert torch.allclose(whole - model.item_vectors(), learned, atol=1e-6)
    assert torch.allclose(weights.sum(1)[1:], torch.ones(30)) and learned.abs().sum() > 0


def test_whitening_changes_frozen_vectors_and_not_the_start_of_the_ids(settings, caplog):
    plain, other = (build(settings, feature_whitening=kind)[0] for kind in ("none", "centre"))
    for name in ("tag", "text"):
        matrix, present = getattr(plain, name).numpy(), getattr(plain, f"{name}_present").numpy()
        expected = np.where(present[:, None], matrix - matrix[present].mean(0), 0)
        np.testing.assert_allclose(getattr(other, name), expected, atol=1e-6)
    assert torch.equal(plain.item_embedding.weight, other.item_embedding.weight)
    build(settings, feature_whitening="pca", use_tags=False, use_text=False)
    assert "without effect on TEMA: feature_whitening (no frozen vectors)" in caplog.text


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"loss_type": "BCE"},
        {"alpha": 0, "beta": 0},
        {"llm_size": 8},
        {"preset": "llm4cdsr-official", "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["tiny", "three"])
def test_llm4cdsr_trains(settings, name, keys):
    model, prepared, _ = build(settings, "LLM4CDSR", name, **keys)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = next(iter(prepared.train_data))
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        terms = model.calculate_loss(batch)
        assert len(terms) == 3
        sum(terms).backward()
        optimizer.step()
        losses.append(terms[0].item())
    assert losses[-1] < losses[0]
    check_scores(model, prepared)


def test_vectors_wider_than_llm_size_mean_what_they_meant(settings, tmp_path):
    """The same vectors in spaces of 16, 24 and 40 dimensions: the same model, the same losses."""
    generator = torch.Generator().manual_seed(1)
    narrow = torch.nn.functional.normalize(torch.randn(30, 16, generator=generator), dim=1)
    narrow = (narrow - narrow.mean(0)).double()
    built = {}
    for width in (16, 24, 40):
        basis, _ = torch.linalg.qr(torch.randn(width, 16, generator=generator, dtype=torch.float64))
        folder = make_dataset(tmp_path / str(width))
        rows = [
            (f"{domain}{i}", " ".join(map(repr, (narrow[15 * d + i] @ basis.T).tolist())))
            for d, domain in enumerate(("book", "film"))
            for i in range(15)
        ]
        write(folder / "tiny.itemllm", ["llm_iid:token", "llm_emb:float_seq"], rows)
        keys = {**settings, "data_path": str(tmp_path / str(width)), "llm_size": 16}
        built[width] = build(keys, "LLM4CDSR", "tiny")
    for model, _, _ in built.values():
        assert model.llm.shape[1] == 16
        there = model.llm[model.llm_present].double()
        assert torch.allclose(there.norm(dim=1).sort()[0], narrow.norm(dim=1).sort()[0], atol=1e-6)
    losses = []
    for width in (24, 40):
        model, prepared, _ = built[width]
        model.eval()
        model.alpha = 0  # its items are drawn anew each time
        losses.append(total(model.calculate_loss(next(iter(prepared.train_data)))).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def check_scores(model, prepared):
    """``predict`` agrees with ``full_sort_predict``; scores are finite; training is unchanged."""
    model.eval()
    with torch.no_grad():
        for rows, batch in prepared.eval_data["test"]:
            scores = model.full_sort_predict(batch)
            assert scores.shape == (len(rows), model.n_items)
            assert torch.isfinite(scores[:, 1:]).all() and (scores[:, 0] == -torch.inf).all()
            for item in (1, 7, model.n_items - 1):
                batch.interaction["item_id"] = torch.full((len(rows),), item)
                assert torch.allclose(model.predict(batch), scores[:, item], atol=1e-4)
    model.train()


@pytest.mark.parametrize("model_name", ["TEMA", "LLM4CDSR"])
def test_training_states_are_those_of_the_truncated_history(settings, model_name):
    """What is trained at step t is what evaluation computes after t events: no step sees ahead."""
    model, _, dataset = build(settings, model_name)
    model.eval()
    sequence = torch.from_numpy(dataset.sequences.of(7)[:8])[None]
    length = torch.tensor([sequence.size(1)])
    tables, layout = model.item_tables(), Layout(length)
    everything = torch.arange(sequence.size(1))
    if model_name == "TEMA":
        states = model.join(*model.threads(tables[0], sequence[0], layout, everything))
    else:
        shared, local = model.threads(tables, sequence[0], layout, everything)
        states = torch.cat([shared[:, None].expand_as(local), local], dim=-1)
    for t in range(sequence.size(1)):
        alone = model.last_states(tables, sequence[:, : t + 1], torch.tensor([t + 1]))
        assert torch.allclose(states[t], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    ("model_name", "keys"),
    [
        ("TEMA", {"intra_weight": 0.0}),
        ("LLM4CDSR", {"loss_type": "CE", "train_neg_sample_args": None, "alpha": 0, "beta": 0}),
    ],
)
def test_loss_is_the_cross_entropy_of_each_target_after_its_history(settings, model_name, keys):
    model, prepared, _ = build(settings, model_name, **keys)
    batch = next(iter(prepared.train_data))
    model.eval()
    with torch.no_grad():
        loss = total(model.calculate_loss(batch))
        terms = []
        for seq, targets in zip(batch["item_id_list"], batch[TARGET_SEQ], strict=True):
            for step in targets.nonzero().flatten().tolist():
                length = torch.tensor([step + 1])
                history = {"item_id_list": seq[None, : step + 1], "item_length": length}
                scores = model.full_sort_predict(Interaction(history))
                terms.append(torch.nn.functional.cross_entropy(scores, targets[step : step + 1]))
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_domain_thread_by_brute_force(settings):
    model, _, dataset = build(settings)
    model.eval()
    items = [dataset.token2id("item_id", t) for t in ("book1", "film2", "film3", "book4", "film5")]
    packed = torch.tensor(items[:2] + items + items[3:4])
    layout = Layout(torch.tensor([2, 5, 0, 1]))
    table, encoder = model.item_vectors(), model.intra_encoders[1]
    states = model.domain_thread(
        table[packed],
        layout,
        model.item_domain[packed],
        2,
        encoder,
        model.empty[1],
        torch.arange(8),
    )
    films = torch.tensor([items[1], items[2], items[4]])
    alone = encoder(table[films], Layout(torch.tensor([3])))
    empty = model.empty[1]
    # book1 film2 | book1 film2 film3 book4 film5 | book4
    expected = [empty, alone[0], empty, alone[0], alone[1], alone[1], alone[2], empty]
    for step, state in enumerate(expected):
        assert torch.allclose(states[step], state, atol=1e-5), step


def test_loss_is_the_mean_cross_entropy_of_the_scores(settings):
    """The fused loss over chunks of rows equals cross-entropy of full_sort_predict's scores."""
    model, prepared, _ = build(
        settings, intra_weight=0.0, hidden_dropout_prob=0, attn_dropout_prob=0
    )
    batch = next(iter(prepared.train_data))
    fused = total(model.calculate_loss(batch)).item()
    expected = []
    with torch.no_grad():
        for row in range(len(batch)):
            for step in torch.nonzero(batch["target_id_list"][row]).flatten().tolist():
                history = batch["item_id_list"][row : row + 1, : step + 1]
                scores = model.full_sort_predict(
                    {"item_id_list": history, "item_length": torch.tensor([step + 1])}
                )
                target = batch["target_id_list"][row, step]
                expected.append(torch.logsumexp(scores[0, 1:], 0) - scores[0, target])
    assert fused == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_bce_loss_by_hand(settings):
    model, prepared, _ = build(
        settings,
        "LLM4CDSR",
        loss_type="BCE",
        alpha=0.0,
        beta=0.0,
        hidden_dropout_prob=0,
        attn_dropout_prob=0,
    )
    batch = next(iter(prepared.train_data))
    found = total(model.calculate_loss(batch)).item()
    per_domain = {1: [], 2: []}
    with torch.no_grad():
        for row in range(len(batch)):
            for step in torch.nonzero(batch["target_id_list"][row]).flatten().tolist():
                scores = model.full_sort_predict(
                    {
                        "item_id_list": batch["item_id_list"][row : row + 1, : step + 1],
                        "item_length": torch.tensor([step + 1]),
                    }
                )[0].double()  # in float32 the sigmoid of a large score is 1
                target = batch["target_id_list"][row, step]
                negative = batch["neg_item_id_list"][row, step]
                loss = -torch.log(torch.sigmoid(scores[target]))
                loss = loss - torch.log(1 - torch.sigmoid(scores[negative]))
                per_domain[int(model.item_domain[target])].append(loss.item())
    assert found == pytest.approx(sum(np.mean(x) for x in per_domain.values()), rel=1e-3)


@pytest.mark.parametrize(("name", "told"), [("bare", True), ("tiny", False)])
def test_a_table_of_tags_without_frozen_vectors_is_told_to_be_idle(settings, caplog, name, told):
    build(settings, name=name, tag_table=True)
    assert ("without effect on TEMA: tag_table" in caplog.text) == told


def test_a_batch_without_a_target_that_counts_is_a_step_of_nothing(settings):
    keys = {"loss_type": "BCE", "alpha": 0.0, "beta": 0.0, "first_of_domain": False}
    model, prepared, dataset = build(settings, "LLM4CDSR", **keys)
    batch = next(iter(prepared.train_data))
    domain = torch.from_numpy(dataset.item_domain)
    first, other = ((domain == d).nonzero().flatten()[0] for d in (1, 2))
    batch = {name: batch[name][:1, :1] for name in ("item_id_list", "target_id_list")}
    batch = {name: torch.full_like(ids, first) for name, ids in batch.items()}
    batch |= {"target_id_list": other[None, None], "neg_item_id_list": other[None, None] + 1}
    batch |= {"item_length": torch.ones(1, dtype=torch.long), "user_id": torch.ones(1).long()}
    loss = total(model.calculate_loss(Interaction(batch)))
    loss.backward()
    assert loss.item() == 0.0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_item_table_is_computed_once_per_evaluation(settings, monkeypatch):
    model, prepared, _ = build(settings)
    calls = []
    original = type(model).item_vectors
    monkeypatch.setattr(type(model), "item_vectors", lambda *a: calls.append(1) or original(*a))
    model.eval()
    with torch.no_grad():
        batches = [b for _, b in prepared.eval_data["test"]]
        assert len(batches) > 1
        before = [model.full_sort_predict(b) for b in batches]
        assert len(calls) == 1
        model.item_embedding.weight.add_(torch.randn_like(model.item_embedding.weight))
        model.eval()  # a new evaluation
        after = model.full_sort_predict(batches[0])
    assert len(calls) == 2 and not torch.allclose(before[0], after)


@pytest.mark.parametrize(("bias", "smoothing"), [(None, 0.0), (-3.0, 0.0), (2.0, 0.3)])
@pytest.mark.parametrize("name", ["tiny", "three"])
def test_the_sampled_losses_tend_to_the_exact_ones(settings, name, bias, smoothing):
    keys = {"name": name, "repeat_bias": bias is not None, "label_smoothing": smoothing}
    exact, prepared, _ = build(settings, **keys)
    sampled, _, _ = build(settings, **keys, full_softmax_items=1, sampled_softmax_items=200_000)
    if bias is not None:
        exact.repeat.data.fill_(bias / REPEAT_UNIT)
    sampled.load_state_dict(exact.state_dict())
    batch = next(iter(prepared.train_data))
    exact.eval(), sampled.eval()
    with torch.no_grad():
        for found, expected in zip(
            sampled.calculate_loss(batch), exact.calculate_loss(batch), strict=True
        ):
            assert found.item() == pytest.approx(expected.item(), rel=0.01)


def test_the_sampled_loss_reads_only_the_drawn_items(settings, monkeypatch):
    model, prepared, _ = build(settings, full_softmax_items=1, sampled_softmax_items=3)
    model.eval()
    batch = next(iter(prepared.train_data))
    drawn = model.proposal.draw(torch.device("cpu"))
    monkeypatch.setattr(model.proposal, "draw", lambda device: drawn)
    negatives = model.by_domain[drawn.column]
    read = torch.cat([batch["item_id_list"].flatten(), batch[TARGET_SEQ].flatten(), negatives])
    unread = sorted(set(range(1, model.n_items)) - set(read.tolist()))
    before = [term.item() for term in model.calculate_loss(batch)]
    model.item_embedding.weight.data[unread] += 100.0
    assert [term.item() for term in model.calculate_loss(batch)] == before


@pytest.mark.parametrize("keys", [{}, {"full_softmax_items": 5}], ids=["exact", "sampled"])
def test_mixed_precision_changes_the_loss_little(settings, keys):
    model, prepared, _ = build(settings, hidden_dropout_prob=0.0, attn_dropout_prob=0.0, **keys)
    batch = next(iter(prepared.train_data))
    torch.manual_seed(0)
    full = total(model.calculate_loss(batch))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = total(model.calculate_loss(batch))
    mixed.backward()
    assert mixed.item() == pytest.approx(full.item(), rel=0.02)
    assert torch.isfinite(model.item_embedding.weight.grad).all()


def test_the_adapter_is_its_two_linear_maps():
    adapter = Adapter(6, 4)
    vectors = torch.randn(50, 6)
    expected = adapter[1](adapter[0](vectors))
    assert torch.allclose(adapter(vectors), expected, atol=1e-6)
    assert torch.allclose(adapter(vectors[:5]), expected[:5], atol=1e-6)


def test_bce_adapts_the_items_of_the_batch_as_it_would_all(settings):
    model, _, _ = build(settings, "LLM4CDSR", loss_type="BCE")
    rows = torch.tensor([1, 4, 9])
    some, everything = model.adapted_items(rows), model.adapted_items()
    assert torch.allclose(some[rows], everything[rows], atol=1e-6)
    assert some.abs().sum(1).count_nonzero() == len(rows)
