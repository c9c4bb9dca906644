"""The sampled softmax: what is drawn, the loss and its gradients against dense computations."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_tema.data.loader import EARLIER, N_EARLIER
from recbole_tema.model import sampled_softmax
from recbole_tema.model.packing import Layout
from recbole_tema.model.sampled_softmax import Proposal, sampled_cross_entropy
from tests.recbole_tema.model.test_models import build, total

CPU = torch.device("cpu")


@pytest.mark.parametrize("chunk", [1, 1 << 21])
def test_value_and_gradients_equal_autograds(chunk, monkeypatch):
    monkeypatch.setattr(sampled_softmax, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.double)  # noqa: E731
    leaves = [draw(40), draw(40, 3), draw(11, 3), draw(40, 5), draw(6, 5), draw(())]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    own, first, table, second, other, value = leaves
    weight, correction = torch.rand(40, generator=generator, dtype=torch.double), draw(17)
    mask = torch.rand(40, 17, generator=generator)
    better, out = mask < 0.2, mask > 0.9
    out[7], better[[0, 39]] = True, False  # a row without any negative
    blocks = [(first, table), (second, other)]
    bonus = (*better.nonzero(as_tuple=True), value)
    found = sampled_cross_entropy(
        own, blocks, correction, out.nonzero(as_tuple=True), weight, bonus
    )
    logits = torch.cat([first @ table.T, second @ other.T], 1) - correction + better * value
    logits = torch.cat([own[:, None], logits.masked_fill(out, -torch.inf)], 1)
    wanted = (weight * (logits.logsumexp(1) - own)).sum()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * wanted, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("copies", [1, 3])
def test_smoothed_targets_are_torchs_where_every_item_is_drawn(copies):
    """Items drawn as often as they are on average, or some of them as several alike."""
    torch.manual_seed(2)
    first, table, second, other = (
        torch.randn(*shape, dtype=torch.double, requires_grad=True)
        for shape in ((9, 3), (8, 3), (9, 5), (6, 5))
    )
    value = torch.tensor(1.5, dtype=torch.double, requires_grad=True)
    column, weight = torch.randint(14, (9,)), torch.rand(9, dtype=torch.double)
    better = torch.rand(9, 14) < 0.3
    logits = torch.cat([first @ table.T, second @ other.T], 1) + better * value
    keys = {"reduction": "none", "label_smoothing": 0.3}
    wanted = (weight * F.cross_entropy(logits, column, **keys)).sum()
    drawn = torch.arange(14).repeat_interleave(copies)
    own = logits.gather(1, column[:, None]).squeeze(1)
    found = sampled_cross_entropy(
        own,
        [(first, table[drawn[drawn < 8]]), (second, other[drawn[drawn >= 8] - 8])],
        torch.full((14 * copies,), float(copies)).log(),
        (drawn == column[:, None]).nonzero(as_tuple=True),
        weight,
        (*better[:, drawn].nonzero(as_tuple=True), value),
        0.3,
    )
    torch.testing.assert_close(found, wanted)
    leaves = [first, table, second, other, value]
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, retain_graph=True),
        torch.autograd.grad(wanted, leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("domains", ["all", "balanced", "own"])
@pytest.mark.parametrize("power", [0.0, 0.75])
def test_items_are_drawn_as_often_as_expected(power, domains):
    popularity, sizes, count = np.array([0, 9, 3, 0, 1, 30, 2]), [4, 3], 5
    proposal = Proposal(popularity, sizes, count, power, domains)
    mass = (popularity + 1.0) ** power
    share = {"all": [mass.sum()] * 2, "balanced": None, "own": None}[domains]
    share = share or [mass[:4].sum(), mass[4:].sum()]
    counts = {"all": (5, 5), "balanced": (3, 2), "own": (5, 5)}[domains]
    expected = np.repeat([counts[0] / share[0], counts[1] / share[1]], sizes) * mass
    np.testing.assert_allclose(proposal.expected(np.arange(7)), expected)
    torch.manual_seed(4)
    seen, steps = np.zeros(7), 1000
    for _ in range(steps):
        drawn = proposal.draw(CPU)
        assert (drawn.column.diff() > 0).all()
        assert [int((drawn.column < 4).sum()), int((drawn.column >= 4).sum())] == drawn.sizes
        column = drawn.column.numpy()
        times = expected[column] * np.exp(-drawn.correction.numpy())
        np.testing.assert_allclose(times, times.round(), rtol=1e-5)
        assert times.sum() == pytest.approx(5 if domains != "own" else 10)
        seen[column] += times
    assert (np.abs(seen / steps - expected) < 5 * np.sqrt(expected / steps)).all()


DRAWN = [[280, 284, 659, 843, 868, 923], [63, 67, 295, 566, 764, 767]]


def test_draws_follow_from_the_seed_alone():
    """Integers of a seed, written down: on every processor and every version the same."""
    proposal = Proposal(np.arange(1000) % 37, [400, 600], 6, 0.75, "all")
    torch.manual_seed(7)
    columns = [proposal.draw(CPU).column.tolist() for _ in range(2)]
    assert columns == DRAWN


def test_the_loss_tends_to_the_full_one():
    torch.manual_seed(1)
    n, catalogue, hidden = 8, 400, 6
    states, table = torch.randn(n, hidden).double(), torch.randn(catalogue, hidden).double()
    target = torch.randint(catalogue, (n,))
    logits = states @ table.T
    weight = torch.full((n,), 1.0 / n).double()
    full = F.cross_entropy(logits, target)
    errors = []
    for count in (50, 200_000):
        popularity = torch.randint(100, (catalogue,)).numpy()
        drawn = Proposal(popularity, [catalogue], count, 0.75, "all").draw(CPU)
        own = logits.gather(1, target[:, None]).squeeze(1)
        left_out = (drawn.column == target[:, None]).nonzero(as_tuple=True)
        blocks = [(states, table[drawn.column])]
        loss = sampled_cross_entropy(own, blocks, drawn.correction, left_out, weight)
        errors.append(abs(loss - full).item())
    assert errors[1] < 0.01 < errors[0]


def dense_loss(model, batch, drawn):
    """TEMA's sampled loss of a batch from tables of the whole catalogue and whole logits."""
    layout = Layout(batch["item_length"])
    items = batch["item_id_list"][layout.row, layout.step]
    wanted = batch["target_id_list"][layout.row, layout.step]
    read = wanted.nonzero().squeeze(1)
    targets = wanted[read]
    table, scoring = model.item_tables()
    inter, intra = model.threads(table, items, layout, read)
    states = model.join(inter, intra)
    among = torch.full((model.n_items,), -torch.inf, dtype=table.dtype)
    among[model.by_domain[drawn.column]] = -drawn.correction.to(table.dtype)
    had = torch.zeros(len(read), model.n_items, dtype=table.dtype)
    for number, step in enumerate(read.tolist() if model.repeat is not None else []):
        row = layout.row[step]
        had[number, items[int(layout.start[row]) : step + 1]] = 1.0
        had[number, batch[EARLIER][0].split(batch[N_EARLIER].tolist())[row]] = 1.0
    same = model.item_domain == model.item_domain[targets][:, None]
    bias = model.history_bias()

    def loss(states, in_domain):
        each = torch.einsum("ndh,kh->nkd", states, scoring)
        place = (model.item_domain - 1).clamp(min=0).expand(len(each), -1)[:, :, None]
        logits = each.gather(2, place).squeeze(2)
        logits = logits if bias is None else logits + bias * had
        own = logits.gather(1, targets[:, None])
        logits = logits + among
        logits = logits.masked_fill(~same, -torch.inf) if in_domain else logits
        logits = logits.scatter(1, targets[:, None], own)
        return F.cross_entropy(logits, targets)

    main = loss(states, model.negatives_from == "own")
    if intra is None or inter is None:
        return main
    return main + model.intra_weight * loss(model._scaled(intra), True)


LEARNED = {"selected_features": ["title", "tags"], "use_tags": False, "use_text": False}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("tiny", {}),
        ("three", {"repeat_bias": True, "intra_weight": 0.7}),
        ("tiny", {"use_intra": False, "repeat_bias": True, **LEARNED}),
        ("three", {"sampled_softmax_domains": "own", "similarity": "cosine"}),
        ("tiny", {"sampled_softmax_domains": "balanced", "use_inter": False, "fusion": "gate"}),
        ("bare", {"sampled_softmax_items": 1, "repeat_bias": True}),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_the_whole_catalogue(settings, name, keys):
    keys = {"full_softmax_items": 5, "sampled_softmax_items": 20, **keys}
    model, prepared, _ = build(settings, name=name, **keys)
    model.double().eval()  # no dropout
    if model.repeat is not None:
        model.repeat.data.fill_(0.03)
    batch = next(iter(prepared.train_data))
    drawn = model.proposal.draw(CPU)
    model.proposal.draw = lambda device: drawn
    losses, gradients = [], []
    for sparse in (True, False):
        for table in model.row_tables():
            table.sparse = sparse
        model.zero_grad()
        loss = total(model.calculate_loss(batch)) if sparse else dense_loss(model, batch, drawn)
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    tables = {id(table.weight) for table in model.row_tables()}
    for parameter, gradient in gradients[0].items():
        assert gradient.is_sparse == (id(dict(model.named_parameters())[parameter]) in tables)
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        torch.testing.assert_close(gradient, gradients[1][parameter], rtol=0, atol=1e-6)
