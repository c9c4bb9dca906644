import torch
from torch.nn import functional as F

from recbole_tema.model import softmax
from recbole_tema.model.softmax import linear_cross_entropy


def blocks_of(n=37, widths=((5, 11), (3, 7)), dtype=torch.double):
    torch.manual_seed(0)
    return [
        (
            torch.randn(n, h, dtype=dtype, requires_grad=True),
            torch.randn(k, h, dtype=dtype, requires_grad=True),
        )
        for h, k in widths
    ]


def reference(blocks, column, weight):
    logits = torch.cat([state @ table.T for state, table in blocks], dim=1)
    return (weight * F.cross_entropy(logits, column, reduction="none")).sum()


def test_value_and_gradients_equal_torchs_cross_entropy(monkeypatch):
    monkeypatch.setattr(softmax, "CHUNK_ELEMENTS", 18 * 16)  # several chunks
    blocks = blocks_of()
    column, weight = torch.randint(18, (37,)), torch.rand(37, dtype=torch.double)
    inputs = [tensor for block in blocks for tensor in block]
    ours = linear_cross_entropy(blocks, column, weight)
    theirs = reference(blocks, column, weight)
    assert torch.allclose(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * theirs, inputs), strict=True
    ):
        assert torch.allclose(a, b)
    with torch.no_grad():
        assert torch.allclose(linear_cross_entropy(blocks, column, weight), theirs)


def test_large_logits_do_not_overflow():
    state = torch.full((2, 1), 1e4, requires_grad=True)
    table = torch.tensor([[1.0], [2.0]])
    loss = linear_cross_entropy([(state, table)], torch.tensor([1, 1]), torch.full((2,), 0.5))
    assert loss.item() == 0.0
