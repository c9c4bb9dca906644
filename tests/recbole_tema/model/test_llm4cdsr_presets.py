"""LLM4CDSR by its presets against the authors' equations, by hand, a row and a step at a time."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from recbole_tema.data.loader import LOCAL_NEGATIVE_SEQ, NEGATIVE_SEQ, TARGET_SEQ
from tests.recbole_tema.model.test_models import build

H, HEADS, LONGEST = 16, 2, 8
# What a tiny model is smaller in; longer sequences than LONGEST are among the tiny ones.
SMALL = {"hidden_size": H, "inner_size": H, "n_heads": HEADS, "MAX_ITEM_LIST_LENGTH": LONGEST}
SMALL |= {"llm_size": 12, "train_batch_size": 128, "eval_batch_size": 64}
SMALL |= {"exclude_history": False}


def by_preset(settings, name, **keys):
    keys = {"preset": name, **SMALL, **keys}
    model, prepared, dataset = build(settings, "LLM4CDSR", **keys)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():  # no bias and no LayerNorm is what it starts as
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval(), prepared, dataset


# By hand


def array(tensor):
    return tensor.detach().numpy()


def normalised(x, norm):
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-8) * array(norm.weight) + array(norm.bias)


def layer(linear, x):
    return array(linear.weight) @ x + array(linear.bias)


def encoded(encoder, vectors, masked):
    """States ``(L, H)`` of one sequence; ``masked``: nobody sees the future or padding."""
    n = len(vectors)
    padding = [np.zeros(H)] * (0 if masked else LONGEST - n)
    x = [v + array(encoder.position.weight)[step] for step, v in enumerate(vectors)]
    for block in encoder.blocks:
        weight = np.split(array(block.qkv.weight), 3)
        bias = np.split(array(block.qkv.bias), 3)
        new = []
        for step, own in enumerate(x):
            query = normalised(own, block.attn_norm)
            seen = (x[: step + 1] if masked else x) + padding
            heads = []
            for head in np.split(np.arange(H), HEADS):
                q, k, v = (
                    [weight[i][head] @ s + bias[i][head] for s in sources]
                    for i, sources in enumerate(([query], seen, seen))
                )
                power = np.exp([q[0] @ one / np.sqrt(H / HEADS) for one in k])
                heads.append((power / power.sum()) @ np.array(v))
            read = normalised(query + layer(block.out, np.concatenate(heads)), block.norm)
            new.append(read + layer(block.outer, np.maximum(layer(block.inner, read), 0)))
        x = new
    return [normalised(state, encoder.last_norm) for state in x]


class ByHand:
    def __init__(self, model, masked):
        self.model, self.masked = model, masked
        self.llm, self.own = array(model.llm), array(model.local_items.weight)
        self.domain = array(model.item_domain)

    def adapted(self, item):
        return layer(self.model.adapter[1], layer(self.model.adapter[0], self.llm[item]))

    def shared(self, items):
        inputs = [self.adapted(item) * np.sqrt(self.llm.shape[1]) for item in items]
        return encoded(self.model.global_encoder, inputs, self.masked)

    def local(self, items, domain):
        """States of a domain's thread; of no items what LayerNorm makes of a padded zero."""
        encoder = self.model.local_encoders[domain - 1]
        inputs = [self.own[item] * np.sqrt(H) for item in items]
        return encoded(encoder, inputs, self.masked) or [array(encoder.last_norm.bias)]

    def logits(self, history):
        """``(n_items,)`` after a history."""
        shared = self.shared(history)[-1]
        of = {
            d: self.local([i for i in history if self.domain[i] == d], d)[-1]
            for d in set(self.domain) - {0}
        }
        return np.array(
            [
                shared @ self.adapted(item) + of[d] @ self.own[item] if d else -np.inf
                for item, d in enumerate(self.domain)
            ]
        )

    def loss(self, rows):
        """Sum over domains of the mean over their targets; ``rows``: (inputs, last target, global
        negatives, local negatives)."""
        terms = {}
        for inputs, last, negatives, local_negatives in rows:
            events = [*inputs, last]
            shared = self.shared(inputs)
            for d in set(self.domain) - {0}:
                steps = [step for step, item in enumerate(events) if self.domain[item] == d]
                # The thread of a domain reads its events but the last, which is a target alone.
                states = self.local([events[step] for step in steps[:-1]], d)
                for nth, step in enumerate(steps[1:]):
                    g, s = shared[step - 1], states[nth]
                    target, drawn, other = (
                        events[step],
                        negatives[step - 1],
                        local_negatives[step - 1],
                    )
                    up = g @ self.adapted(target) + s @ self.own[target]
                    down = g @ self.adapted(drawn) + s @ self.own[other]
                    terms.setdefault(d, []).append(np.log1p(np.exp(-up)) + np.log1p(np.exp(down)))
        return sum(np.mean(values) for values in terms.values())


@pytest.mark.parametrize("name", ["llm4cdsr-official", "llm4cdsr-paper"])
def test_logits_and_loss_are_those_by_hand(settings, name):
    model, prepared, _ = by_preset(settings, name, n_layers=2, alpha=0, beta=0)
    hand = ByHand(model, masked=name == "llm4cdsr-paper")
    _, batch = next(iter(prepared.eval_data["test"]))
    length = batch["item_length"].tolist()
    assert min(length) < 4 and max(length) == LONGEST
    with torch.no_grad():
        scores = model.full_sort_predict(batch).numpy()
    for row, n in enumerate(length[::3]):
        history = batch["item_id_list"][::3][row, :n].tolist()
        assert np.allclose(scores[::3][row], hand.logits(history), atol=1e-8)

    batch = next(iter(prepared.train_data))
    fields = [batch["item_id_list"], batch[TARGET_SEQ], batch[NEGATIVE_SEQ]]
    fields.append(batch[LOCAL_NEGATIVE_SEQ] if LOCAL_NEGATIVE_SEQ in batch else fields[-1])
    rows = []
    for inputs, targets, *drawn in zip(*(field.tolist() for field in fields), strict=True):
        n = sum(item > 0 for item in inputs)
        rows.append((inputs[:n], targets[n - 1], *drawn))
    loss, regular, profile = model.calculate_loss(batch)
    assert float(loss) == pytest.approx(hand.loss(rows), abs=1e-8)
    assert float(regular) == float(profile) == 0


def test_rows_batches_and_negatives_of_the_authors(settings):
    keys = {"train_batch_size": 7}
    _, prepared, dataset = by_preset(settings, "llm4cdsr-official", **keys)
    train, domain = dataset.train_sequences, dataset.item_domain
    users = np.flatnonzero(train.lengths > 1)
    assert max(train.lengths) > LONGEST + 1
    sizes, seen = [], []
    for batch in prepared.train_data:
        sizes.append(len(batch))
        seen += batch["user_id"].tolist()
        inputs, targets = batch["item_id_list"].numpy(), batch[TARGET_SEQ].numpy()
        for user, row, wanted in zip(batch["user_id"].tolist(), inputs, targets, strict=True):
            events = train.of(user)[-LONGEST - 1 :]
            assert row[row > 0].tolist() == events[:-1].tolist()
            assert wanted[wanted > 0].tolist() == events[1:].tolist()
        there = targets > 0
        for field, like in ((NEGATIVE_SEQ, inputs), (LOCAL_NEGATIVE_SEQ, targets)):
            assert (domain[batch[field].numpy()] == domain[like])[there].all()
        assert (batch[NEGATIVE_SEQ] != batch[LOCAL_NEGATIVE_SEQ]).numpy()[there].any()
    assert sizes == [7] * (len(users) // 7) + [len(users) % 7] and sorted(seen) == users.tolist()
    assert len(prepared.train_data) == len(sizes)


def test_local_tables_are_each_domains_components_and_stay_so(settings):
    keys = {"preset": "llm4cdsr-official", **SMALL, "hidden_size": 4, "n_heads": 1}
    model, prepared, dataset = build(settings, "LLM4CDSR", **keys)
    vectors = dataset.feature("llm_iid")[0].double().numpy()
    table = model.local_items.weight.detach().clone()
    for d in (1, 2):
        mine = dataset.item_domain == d
        theirs = PCA(4, svd_solver="full").fit_transform(vectors[mine])
        ours = table[torch.from_numpy(mine)].numpy()
        assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-5), "but for the signs"
    theirs = PCA(12, svd_solver="full").fit_transform(vectors[1:])
    assert np.allclose(np.abs(model.llm[1:].numpy()), np.abs(theirs), atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sum(model.calculate_loss(next(iter(prepared.train_data)))).backward()
    optimizer.step()
    assert torch.equal(model.local_items.weight, table)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_initial_weights_are_xavier_normal_and_biases_pytorchs(settings):
    keys = {"preset": "llm4cdsr-official", **SMALL, "hidden_size": 64, "inner_size": 64}
    model, _, _ = build(settings, "LLM4CDSR", **keys)
    block = model.global_encoder.blocks[0]
    for linear in (block.qkv, block.out, block.inner, block.outer, *model.adapter):
        n_out, n_in = linear.weight.shape
        assert float(linear.weight.std()) == pytest.approx((2 / (n_in + n_out)) ** 0.5, rel=0.12)
    assert not block.qkv.bias.any() and not block.out.bias.any()
    assert 0 < float(block.inner.bias.abs().max()) <= 64**-0.5
    other, _, _ = build(settings, "LLM4CDSR", hidden_size=64, inner_size=64, n_heads=2)
    assert float(other.global_encoder.blocks[0].inner.weight.std()) == pytest.approx(0.02, rel=0.1)
