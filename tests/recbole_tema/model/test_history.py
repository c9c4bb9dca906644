"""`repeat_bias`: what the score of an item that the user has had gets added."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_tema.data.loader import EARLIER, N_EARLIER
from recbole_tema.inference import recommend
from recbole_tema.model.abstract_recommender import REPEAT_UNIT
from recbole_tema.model.history import History
from recbole_tema.model.packing import Layout
from recbole_tema.model.softmax import linear_cross_entropy
from tests.recbole_tema.model.test_models import build, total
from tests.support.tiny_dataset import make_dataset, write

pytestmark = pytest.mark.long

MODELS = ["TEMA", "LLM4CDSR"]


def pairs_of(had):
    rows, items = (part.tolist() for part in had.pairs)
    assert rows == sorted(rows)
    return sorted(zip(rows, items, strict=True))


def test_pairs_of_packed_sequences_by_hand():
    items = torch.tensor([7, 3, 7, 5, 2, 2, 4])
    layout = Layout(torch.tensor([4, 0, 3]))
    read = torch.tensor([0, 2, 3, 5])
    had = History.until(read, layout, items, 10)
    assert pairs_of(had) == [(0, 7), (1, 3), (1, 7), (2, 3), (2, 5), (2, 7), (3, 2)]
    assert had.has(torch.tensor([7, 5, 5, 2])).tolist() == [True, False, True, True]
    odd = torch.arange(10) % 2 == 1
    some = had.only(torch.tensor([False, True, False, True]), odd)
    assert pairs_of(some) == [(0, 3), (0, 7)]
    # Before the window: 5, 5 and 1, then nothing, then 4 and 7.
    earlier = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([5, 5, 1, 4, 7])
    had = History.until(read, layout, items, 10, earlier)
    before = [(0, 1), (0, 5), (1, 1), (1, 5), (2, 1), (3, 4), (3, 7)]
    now = [(0, 7), (1, 3), (1, 7), (2, 3), (2, 5), (2, 7), (3, 2)]
    assert pairs_of(had) == sorted(before + now)
    assert had.has(torch.tensor([3, 5, 4, 4])).tolist() == [False, True, False, True]


@pytest.mark.parametrize(("chunk", "smoothing"), [(1, 0.0), (1 << 21, 0.0), (1 << 21, 0.2)])
def test_a_bonus_in_the_softmax_is_that_of_autograd(chunk, smoothing, monkeypatch):
    monkeypatch.setattr("recbole_tema.model.softmax.CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.double)  # noqa: E731
    leaves = [draw(40, 3), draw(11, 3), draw(40, 3), draw(6, 3), draw(())]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    column = torch.randint(17, (40,), generator=generator)
    weight = torch.rand(40, generator=generator, dtype=torch.double)
    place = torch.rand(40, 17, generator=generator) < 0.2
    place[[0, 5, 39]] = False
    row, at = place.nonzero(as_tuple=True)
    first, table, second, other, value = leaves
    blocks = [(first, table), (second, other)]
    found = linear_cross_entropy(blocks, column, weight, (row, at, value), smoothing)
    logits = torch.cat([first @ table.T, second @ other.T], 1) + place * value
    keys = {"reduction": "none", "label_smoothing": smoothing}
    wanted = (weight * F.cross_entropy(logits, column, **keys)).sum()
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * wanted, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(
            linear_cross_entropy(blocks, column, weight, (row, at, value), smoothing), wanted
        )


SOFTMAXES = [{}, {"full_softmax_items": 5, "sampled_softmax_items": 30}]


@pytest.mark.parametrize("keys", [*SOFTMAXES, {"use_intra": False}, {"use_inter": False}], ids=str)
@pytest.mark.parametrize("name", ["tiny", "three"])
def test_without_a_bias_the_loss_is_as_before(settings, name, keys):
    plain, _, _ = build(settings, name=name, repeat_bias=False, **keys)
    biased, prepared, _ = build(settings, name=name, repeat_bias=True, **keys)
    biased.load_state_dict(plain.state_dict(), strict=False)
    batch = next(iter(prepared.train_data))
    losses = []
    for model in (plain, biased):
        torch.manual_seed(5)
        losses.append(total(model.eval().calculate_loss(batch)))
    torch.testing.assert_close(*losses)
    losses[1].backward()
    assert biased.repeat.grad.abs() > 1e-4


def dense_loss(model, batch, bias):
    """TEMA's loss of a batch from whole matrices of logits, a target at a time."""
    layout = Layout(batch["item_length"])
    items = batch["item_id_list"][layout.row, layout.step]
    wanted = batch["target_id_list"][layout.row, layout.step]
    read = wanted.nonzero().squeeze(1)
    table, scoring = model.item_tables()
    inter, intra = model.threads(table, items, layout, read)
    states = model.join(inter, intra)
    main, own = 0, 0
    for number, step in enumerate(read.tolist()):
        start = int(layout.start[layout.row[step]])
        had = torch.zeros(model.n_items)
        had[items[start : step + 1]] = bias
        had[batch[EARLIER][0].split(batch[N_EARLIER].tolist())[layout.row[step]]] = bias
        target = wanted[step]
        for state, among in (
            (states[number], model.item_domain > 0),
            (intra[number], model.item_domain == model.item_domain[target]),
        ):
            logits = (state[model.item_domain - 1] * scoring).sum(1) + had
            term = -logits.masked_fill(~among, -torch.inf).log_softmax(0)[target]
            if among.sum() == model.n_items - 1:
                main = main + term / len(read)
            else:
                own = own + term / len(read)
    return main + model.intra_weight * own


@pytest.mark.parametrize("name", ["tiny", "three"])
def test_the_loss_with_a_bias_is_that_of_every_target_by_itself(settings, name):
    model, prepared, _ = build(settings, name=name, repeat_bias=True, intra_weight=0.7)
    batch = next(iter(prepared.train_data))
    model.eval()
    model.repeat.data.fill_(-3 / REPEAT_UNIT)
    losses = [total(model.calculate_loss(batch)), dense_loss(model, batch, -3.0)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    model.repeat.data.zero_()
    assert abs(total(model.calculate_loss(batch)) - losses[0]) > 1e-2


def test_a_sampled_softmax_without_a_negative_of_a_domain(settings):
    keys = {"full_softmax_items": 5, "sampled_softmax_items": 1}
    model, prepared, _ = build(settings, name="three", repeat_bias=True, **keys)
    loss = total(model.calculate_loss(next(iter(prepared.train_data))))
    assert loss.isfinite()


def test_the_gradient_of_the_bias_is_in_units_of_scores(settings):
    """A clipped norm of all gradients must not be that of this one number."""
    model, prepared, _ = build(settings, repeat_bias=True)
    model.eval()
    batch = next(iter(prepared.train_data))
    total(model.calculate_loss(batch)).backward()
    step = 1e-2
    with torch.no_grad():
        found = []
        for sign in (1, -1):
            model.repeat.fill_(sign * step / REPEAT_UNIT)
            found.append(total(model.calculate_loss(batch)))
    assert model.repeat.grad.item() == pytest.approx((found[0] - found[1]).item() / 2 / step, 0.02)


# Windows of 3 events, so that most histories begin before theirs.
SHORT = {"MAX_ITEM_LIST_LENGTH": 3, "repeat_bias": True}


@pytest.mark.parametrize("rows", ["sequence", "prefix"])
def test_what_a_window_is_given_is_what_came_before_it(settings, rows):
    _, prepared, _ = build(settings, **SHORT, train_rows=rows)
    sequences = prepared.train_dataset.train_sequences
    seen = np.zeros(len(sequences.lengths), dtype=int)
    for batch in prepared.train_data:
        earlier = batch[EARLIER][0].split(batch[N_EARLIER].tolist())
        targets = batch["target_id_list"]
        for row, user in enumerate(batch["user_id"].tolist()):
            window = batch["item_id_list"][row, : batch["item_length"][row]].tolist()
            place = len(earlier[row]) + len(window)
            had = sequences.of(user).tolist()
            assert [*earlier[row].tolist(), *window] == had[:place]
            assert targets[row, len(window) - 1] == had[place]  # the next is not among them
            seen[user] += targets[row].count_nonzero()
    assert (seen == np.maximum(sequences.lengths - 1, 0)).all()


def test_history_by_the_numbers_of_a_steps_own_items(settings):
    model, prepared, _ = build(settings, **SHORT)
    batch = next(iter(prepared.train_data))
    layout = Layout(batch["item_length"])
    items = batch["item_id_list"][layout.row, layout.step]
    read = torch.arange(len(items))
    rows = torch.unique(torch.cat([items, torch.tensor([1, 5])]))
    rows = rows[rows % 3 > 0]  # not all that was had before is among them
    kept = torch.isin(items, rows)
    layout = Layout(torch.bincount(layout.row[kept], minlength=len(layout.length)))
    items, read = items[kept], torch.arange(int(kept.sum()))
    among = torch.zeros(model.n_items, dtype=torch.bool)
    among[rows] = True
    wanted = model.history(batch, layout, items, read).only(slice(None), among)
    found = model.history(batch, layout, torch.searchsorted(rows, items), read, rows)
    row, item = found.pairs
    assert sorted(zip(row.tolist(), rows[item].tolist(), strict=True)) == pairs_of(wanted)
    assert len(row) > len(items)


def test_a_model_that_does_not_ask_is_not_given_it(settings):
    _, prepared, _ = build(settings, repeat_bias=False)
    batches = [next(iter(prepared.train_data)), next(iter(prepared.eval_data["test"]))[1]]
    assert not any(EARLIER in batch for batch in batches)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", ["tiny", "three"])
def test_scores_of_the_history_get_the_bias_and_no_others(settings, name, model_name):
    model, prepared, dataset = build(settings, model_name, name, **SHORT)
    model.eval()
    for phase, held_out in (("valid", 2), ("test", 1)):
        _, batch = next(iter(prepared.eval_data[phase]))
        with torch.no_grad():
            model.repeat.zero_()
            before, pair = model.full_sort_predict(batch), model.predict(batch)
            model.repeat.fill_(-3 / REPEAT_UNIT)
            after, again = model.full_sort_predict(batch), model.predict(batch)
        had = torch.zeros_like(after, dtype=torch.bool)
        for row, user in enumerate(batch["user_id"].tolist()):
            had[row, dataset.sequences.of(user)[:-held_out]] = True
        torch.testing.assert_close(after[had], before[had] - 3)
        assert torch.equal(after[~had], before[~had])
        asked = had.gather(1, batch["item_id"][:, None])[:, 0]
        torch.testing.assert_close(again - pair, -3.0 * asked)
        assert had.sum(1).max() > 3


@pytest.mark.parametrize("model_name", MODELS)
def test_a_row_is_trained_as_it_is_scored(settings, model_name):
    model, prepared, _ = build(settings, model_name, "three", **SHORT, train_rows="prefix")
    model.eval()
    model.repeat.data.fill_(2 / REPEAT_UNIT)
    batch = next(iter(prepared.train_data))
    with torch.no_grad():
        loss = model.calculate_loss(batch)[0]
        scores = model.full_sort_predict(batch)[:, 1:]
    target = batch["target_id_list"].sum(1)
    torch.testing.assert_close(loss, F.cross_entropy(scores, target - 1))
    batch[N_EARLIER] = torch.zeros_like(batch[N_EARLIER])
    batch.interaction[EARLIER] = batch[EARLIER][:, :0]
    with torch.no_grad():
        assert (model.calculate_loss(batch)[0] - loss).abs() > 1e-3


@pytest.mark.parametrize("model_name", MODELS)
def test_recommendations_count_the_whole_history(settings, model_name):
    model, _, dataset = build(settings, model_name, **SHORT)
    model.dataset = dataset
    user = int(np.argmax(dataset.sequences.lengths))
    history = [dataset.id2token("item_id", item) for item in dataset.sequences.of(user)]
    asked = {"k": 100, "exclude_history": False}
    found = {}
    for bias in (0, -30):
        model.repeat.data.fill_(bias / REPEAT_UNIT)
        found[bias] = dict(recommend(model, [history, ["book1"]], **asked)[0])
        (by_user,) = recommend(model, users=[dataset.id2token("user_id", user)], **asked)
        assert dict(by_user) == pytest.approx(found[bias], abs=1e-5)
    lower = {item for item in found[0] if found[-30][item] < found[0][item] - 29}
    assert lower == set(history)
    assert len(lower) > 3


def test_bce_learns_no_bias_and_says_so(settings, caplog):
    model, prepared, _ = build(settings, "LLM4CDSR", loss_type="BCE", **SHORT)
    assert model.history_bias() is None
    assert "repeat_bias (config_dict; loss_type is BCE)" in caplog.text
    model.calculate_loss(next(iter(prepared.train_data)))


@pytest.mark.parametrize("keys", SOFTMAXES, ids=str)
@pytest.mark.parametrize("repeats", [True, False])
def test_the_bias_learns_whether_items_come_again(settings, tmp_path, repeats, keys):
    folder = make_dataset(tmp_path / "data", "again")
    events = []
    for user in range(60):
        items = [f"{('book', 'film')[k % 2]}{(user + k) % 15}" for k in range(12)]
        if repeats:  # each item twice
            items = [item for item in items[:6] for _ in range(2)]
        events += [(f"u{user}", item, 1000 * user + k) for k, item in enumerate(items)]
    head = (folder / "again.inter").read_text().splitlines()[0].split("\t")
    write(folder / "again.inter", head, events)
    settings = {**settings, "data_path": str(tmp_path / "data")}
    model, prepared, _ = build(settings, name="again", repeat_bias=True, **keys)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        for batch in prepared.train_data:
            optimizer.zero_grad()
            total(model.calculate_loss(batch)).backward()
            optimizer.step()
    assert (model.history_bias().item() > 0.5) == repeats
    assert abs(model.history_bias().item()) > 0.5
