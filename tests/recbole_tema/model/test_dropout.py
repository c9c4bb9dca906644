import numpy as np
import pytest
import torch
from scipy import stats

from recbole_tema.model.dropout import Dropout
from recbole_tema.model.encoder import Block


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_kept_at_the_rate_and_scaled_so_that_the_mean_stays(p):
    torch.manual_seed(0)
    kept = Dropout(p)(torch.ones(401, 499)) > 0
    rate = stats.binomtest(int(kept.sum()), kept.numel(), 1 - p)
    assert rate.pvalue > 1e-3
    out = Dropout(p)(torch.full((401, 499), 2.0))
    assert out.mean().item() == pytest.approx(2.0, rel=0.02)
    assert out[out > 0].unique().tolist() == pytest.approx([2 / (1 - p)], rel=1e-4)


def test_the_four_elements_of_one_draw_are_independent():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(400_000)) > 0).numpy().reshape(-1, 4)
    pattern = kept @ np.array([1, 2, 4, 8])
    assert stats.chisquare(np.bincount(pattern, minlength=16)).pvalue > 1e-3


def test_gradients_go_where_the_values_went_and_seeds_repeat():
    x = torch.randn(7, 5, requires_grad=True)
    torch.manual_seed(2)
    out = Dropout(0.4)(x)
    out.sum().backward()
    assert torch.allclose(x.grad * x, out)
    torch.manual_seed(2)
    assert torch.equal(Dropout(0.4)(x), out)


def test_off_in_evaluation_and_at_zero():
    x = torch.randn(3, 3)
    assert Dropout(0.4).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert not Dropout(1.0)(x).any()


def test_attention_with_dropout_is_pytorchs_in_the_mean():
    torch.manual_seed(3)
    block = Block(8, 16, 2, dropout=0.0, attn_dropout=0.25, act="gelu", eps=1e-12)
    heads = [torch.randn(2, 2, 6, 4) for _ in range(3)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
    drawn = torch.stack([block.attend(*heads, None) for _ in range(4000)])
    assert torch.allclose(drawn.mean(0), expected, atol=0.1)
    assert not torch.allclose(drawn[0], drawn[1])
    assert torch.allclose(block.eval().attend(*heads, None), expected, atol=1e-5)
