import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from recbole_tema.model import fusion
from recbole_tema.model.contrast import soft_contrastive_loss
from recbole_tema.model.fusion import (
    Fusion,
    Projection,
    TagTable,
    initial_vectors,
    principal_components,
    tag_matrix,
    tag_weights,
    whitened,
)


def test_components_are_sklearns_up_to_sign():
    torch.manual_seed(0)
    matrix = torch.randn(30, 8) @ torch.randn(8, 8)
    present = torch.ones(30, dtype=torch.bool)
    present[[0, 7]] = False
    found = principal_components(matrix, present, 4)
    expected = torch.from_numpy(PCA(4).fit_transform(matrix[present].double().numpy()))
    started = initial_vectors(matrix, present, 4, 0.05)
    assert torch.allclose(started, found * (0.05 / found[present].std(correction=1)), atol=1e-6)
    assert torch.allclose(found[present].abs().double(), expected.abs(), atol=1e-4)
    assert found[~present].abs().sum() == 0
    assert principal_components(matrix, present, 12).shape == (30, 12)


def test_a_rotation_or_more_dimensions_change_no_component():
    """Lengths and angles of centred vectors stay, whatever space they lie in."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(100, 6, generator=generator, dtype=torch.float64)
    matrix = matrix - matrix.mean(0)
    present = torch.ones(100, dtype=torch.bool)
    found = []
    for width in (6, 9, 40):
        basis, _ = torch.linalg.qr(torch.randn(width, 6, generator=generator, dtype=torch.float64))
        found.append(principal_components(matrix @ basis.T, present, 8))
        assert torch.allclose(found[-1] @ found[-1].T, matrix @ matrix.T, atol=1e-10)
    assert torch.allclose(found[0], found[1], atol=1e-10)
    assert torch.allclose(found[0], found[2], atol=1e-10)


@pytest.mark.parametrize("rank", [5, 8])
def test_whitened_vectors_by_numpy(rank, monkeypatch):
    """By the singular value decomposition; in blocks, as many items are."""
    monkeypatch.setattr(fusion, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(rank)
    given = (rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 8)) + 3).astype(np.float32)
    matrix, present = torch.from_numpy(given), torch.ones(40, dtype=torch.bool)
    present[[0, 7]] = False
    rows = given[present.numpy()].astype(np.float64)
    rows -= rows.mean(0)
    centre, pca = (whitened(matrix, present, kind) for kind in ("centre", "pca"))
    np.testing.assert_allclose(centre[present], rows, atol=1e-6)
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    by_hand = left[:, :rank] @ right[:rank] * np.sqrt(len(rows) / rank)
    np.testing.assert_allclose(pca[present], by_hand, atol=1e-4)
    variances = np.linalg.eigvalsh(np.cov(pca[present].double().numpy(), rowvar=False, bias=True))
    np.testing.assert_allclose(variances[-rank:], 1 / rank, rtol=1e-4)
    assert pca.dtype == torch.float32 and not centre[~present].any() and not pca[~present].any()
    assert torch.equal(pca, whitened(matrix, present, "pca"))


def test_whitened_vectors_that_are_one_or_none():
    matrix = torch.ones(3, 2)
    for present in ([False] * 3, [True, False, False], [True] * 3):
        for kind in ("centre", "pca"):
            assert not whitened(matrix, torch.tensor(present), kind).any()


def test_tag_vectors_by_hand():
    tag_ids = torch.tensor([[0, 0], [1, 2], [2, 0]])
    weights = torch.tensor([[0.0, 0.0], [0.9, 0.3], [0.5, 0.0]])
    vectors = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    matched = tag_matrix(tag_ids, tag_weights(tag_ids, weights, "matched"), vectors)
    assert torch.allclose(matched, torch.tensor([[0.0, 0.0], [0.75, 0.25], [0.0, 1.0]]))
    raw = tag_matrix(tag_ids, tag_weights(tag_ids, weights, "raw"), vectors)
    assert torch.allclose(raw, torch.tensor([[0.0, 0.0], [0.9, 0.3], [0.0, 0.5]]))
    binary = tag_matrix(tag_ids, tag_weights(tag_ids, weights, "binary"), vectors)
    assert torch.allclose(binary, torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))


@pytest.mark.parametrize("empty", [[], [0], [5], [0, 1, 3, 5], [0, 1, 2, 3, 4, 5]])
def test_tag_vectors_of_ragged_lists(empty):
    """Items without tags at the ends and between; the gradient too."""
    generator = torch.Generator().manual_seed(len(empty))
    tag_ids = torch.randint(1, 7, (6, 4), generator=generator)
    tag_ids[torch.arange(4) >= torch.tensor([1, 4, 2, 3, 1, 2])[:, None]] = 0
    tag_ids[empty] = 0
    weights = torch.rand(6, 4, generator=generator) * (tag_ids > 0)
    vectors = torch.randn(7, 3, generator=generator).requires_grad_()
    scale = torch.randn(6, 3, generator=generator)
    by_hand = (torch.nn.functional.one_hot(tag_ids, 7) * weights[..., None]).sum(1) @ vectors
    found = tag_matrix(tag_ids, weights, vectors)
    torch.testing.assert_close(found, by_hand)
    grads = [torch.autograd.grad((out * scale).sum(), vectors)[0] for out in (found, by_hand)]
    torch.testing.assert_close(*grads)


def test_a_tag_without_a_vector_takes_no_share():
    tag_ids = torch.tensor([[1, 2], [2, 0], [1, 0]])
    weights = torch.tensor([[0.9, 0.3], [0.5, 0.0], [0.0, 0.0]])
    known = torch.tensor([False, True, False])
    found = tag_weights(tag_ids, weights, "matched", known)
    assert torch.equal(found, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_raw_scores_of_any_size_become_shares():
    """The largest and least that `tag` stores."""
    tag_ids, weights = torch.tensor([[1, 2]] * 2), torch.tensor([[3.0, 1.0]] * 2)
    scale = torch.tensor([[5.5e34], [1.8e-35]])
    found = tag_weights(tag_ids, weights * scale, "matched")
    assert torch.allclose(found, torch.tensor([[0.75, 0.25]] * 2))


@pytest.mark.parametrize(("first", "told"), [(0.7, True), (0.8, False)])
def test_raw_weights_that_are_shares_are_told(first, told, caplog):
    tag_ids = torch.tensor([[0, 0], [1, 2], [2, 0]])
    weights = torch.tensor([[0.0, 0.0], [first, 0.3], [1.0, 0.0]])
    tag_weights(tag_ids, weights, "matched")
    assert not caplog.text
    assert torch.equal(tag_weights(tag_ids, weights, "raw"), weights)
    assert ("raw is matched" in caplog.text) == told


def test_a_table_of_tags_is_one_hot_vectors_behind_a_projection():
    table = TagTable(4, 3)
    tag_ids, weights = torch.tensor([[1, 3], [2, 0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    out = table(tag_ids, weights, torch.tensor([True, False]))
    one_hot = torch.tensor([0.0, 0.25, 0.0, 0.75])
    assert torch.allclose(out[0], one_hot @ table.vectors.weight)
    assert torch.equal(out[1], table.missing)


def test_a_missing_row_gets_the_learned_vector():
    projection = Projection(3, 2)
    projection.missing.data = torch.tensor([4.0, 5.0])
    out = projection(torch.ones(2, 3), torch.tensor([True, False]))
    assert torch.allclose(out[1], torch.tensor([4.0, 5.0]))
    assert torch.allclose(out[0], projection.linear(torch.ones(3)))


@pytest.mark.parametrize("kind", ["sum", "gate", "concat"])
def test_fusions(kind):
    torch.manual_seed(0)
    parts = [torch.randn(5, 4) for _ in range(3)]
    joined = Fusion(kind, 3, 4)
    out = joined(parts)
    assert out.shape == (5, 4)
    if kind == "sum":
        assert torch.allclose(out, parts[0] + parts[1] + parts[2])
    if kind == "gate":  # equal gates are the sum
        joined.gate.weight.data.zero_()
        joined.gate.bias.data.zero_()
        assert torch.allclose(joined(parts), sum(parts), atol=1e-6)
    assert torch.equal(Fusion(kind, 1, 4)([parts[0]]), parts[0])


def test_contrastive_loss_of_two_orthogonal_pairs_by_hand():
    x = torch.eye(2)
    temperature = 0.5
    # Logits are 2 on the diagonal, 0 beside it; soft targets are softmax([0.5, 0]).
    right = math.exp(0.5) / (math.exp(0.5) + 1)
    log_right = 2 - math.log(math.exp(2) + 1)
    log_wrong = -math.log(math.exp(2) + 1)
    expected = -(right * log_right + (1 - right) * log_wrong)
    assert soft_contrastive_loss(x, x, temperature).item() == pytest.approx(expected, abs=1e-6)
    assert soft_contrastive_loss(x[:1], x[:1], temperature).item() == 0.0
