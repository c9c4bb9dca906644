import pytest
import torch
from recbole.model.layers import TransformerEncoder
from torch import nn

from recbole_tema.model.encoder import SequenceEncoder, init_as_recbole
from recbole_tema.model.packing import Layout

SIZES = {"n_layers": 2, "n_heads": 2, "inner_size": 32}


def encoder(**kwargs):
    torch.manual_seed(0)
    module = SequenceEncoder(16, 9, dropout=0.3, attn_dropout=0.3, **SIZES, **kwargs)
    module.apply(lambda m: init_as_recbole(m, 0.5))
    return module.eval()


def run(module, vectors, length):
    """``(B, L, H)`` -> the states in the same shape, 0 where there is padding."""
    layout = Layout(length)
    states = torch.zeros_like(vectors)
    states[layout.row, layout.step] = module(vectors[layout.row, layout.step], layout)
    return states


def copy_into_recbole(ours):
    """RecBole's encoder with the same weights, layer by layer."""
    theirs = TransformerEncoder(
        hidden_size=16, hidden_dropout_prob=0.3, attn_dropout_prob=0.3, hidden_act="gelu",
        layer_norm_eps=1e-12, **SIZES,
    ).eval()  # fmt: skip
    for block, layer in zip(ours.blocks, theirs.layer, strict=True):
        attention, feed = layer.multi_head_attention, layer.feed_forward
        weights, biases = block.qkv.weight.split(16), block.qkv.bias.split(16)
        for linear, weight, bias in zip(
            (attention.query, attention.key, attention.value), weights, biases, strict=True
        ):
            linear.weight.data, linear.bias.data = weight.data, bias.data
        attention.dense, attention.LayerNorm = block.out, block.attn_norm
        feed.dense_1, feed.dense_2, feed.LayerNorm = block.inner, block.outer, block.norm
    return theirs


def test_states_equal_recboles_sasrec_encoder():
    ours = encoder()
    theirs = copy_into_recbole(ours)
    length = torch.tensor([9, 4, 1])
    items = torch.zeros(3, 9, dtype=torch.long)
    for row, n in enumerate(length):
        items[row, :n] = torch.arange(1, n + 1)
    vectors = nn.Embedding(10, 16)(items)
    x = ours.norm(vectors + ours.position.weight)
    # The mask of RecBole's SequentialRecommender.get_attention_mask.
    mask = torch.tril((items != 0)[:, None, None, :].expand(-1, -1, 9, -1))
    expected = theirs(x, torch.where(mask, 0.0, -10000.0), output_all_encoded_layers=True)[-1]
    found = run(ours, vectors, length)
    for row, n in enumerate(length):
        assert torch.allclose(found[row, :n], expected[row, :n], atol=1e-5)


def test_no_step_sees_a_later_one():
    module = encoder()
    vectors = torch.randn(2, 9, 16)
    changed = vectors.clone()
    changed[:, 5:] = torch.randn(2, 4, 16)
    length = torch.tensor([9, 9])
    before, after = run(module, vectors, length), run(module, changed, length)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-2)


def test_without_the_causal_mask_a_step_sees_later_ones_but_no_padding():
    module = encoder(causal=False)
    vectors = torch.randn(2, 9, 16)
    changed = vectors.clone()
    changed[0, 6:] = 7.0
    length = torch.tensor([6, 9])
    before, after = run(module, vectors, length), run(module, changed, length)
    assert torch.allclose(before[0, :6], after[0, :6], atol=1e-6)
    changed[0, 5] = 3.0
    assert not torch.allclose(run(module, changed, length)[0, 0], after[0, 0], atol=1e-3)
    assert torch.isfinite(before).all()


def test_states_of_the_steps_to_read_are_those_of_all():
    module = encoder()
    layout = Layout(torch.tensor([5, 2, 0, 9]))
    vectors = torch.randn(16, 16)
    read = torch.tensor([4, 0, 11, 15])
    everything = module(vectors, layout)
    assert torch.allclose(module(vectors, layout, read), everything[read], atol=1e-6)


def causal_attention(block, x):
    """Torch's own attention with the block's weights: ``x (1, L, H)``."""
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    attention.in_proj_weight, attention.in_proj_bias = block.qkv.weight, block.qkv.bias
    attention.out_proj = block.out
    later = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1)
    return attention(x, x, x, attn_mask=later, need_weights=False)[0]


def plain_pre_norm(block, x):
    x = x + causal_attention(block, block.attn_norm(x))
    return x + block.outer(torch.nn.functional.gelu(block.inner(block.norm(x))))


def plain_ligr(block, x):
    x = x + torch.sigmoid(block.attn_gate(x)) * causal_attention(block, block.attn_norm(x))
    inner = block.norm(x) @ block.swiglu.inner.weight.T
    gate, value = inner[..., :32], inner[..., 32:]
    fed = (gate / (1 + (-gate).exp()) * value) @ block.swiglu.outer.weight.T
    return x + torch.sigmoid(block.gate(x)) * fed


@pytest.mark.parametrize(("name", "plain"), [("pre_norm", plain_pre_norm), ("ligr", plain_ligr)])
def test_other_blocks_are_those_of_their_papers(name, plain):
    module = encoder(block=name)
    vectors = torch.randn(3, 9, 16)
    x = module.norm(vectors + module.position.weight)
    for block in module.blocks:
        x = torch.cat([plain(block, row[None]) for row in x])
    length = torch.tensor([9, 4, 1])
    expected, found = module.last_norm(x), run(module, vectors, length)
    for row, n in enumerate(length):
        torch.testing.assert_close(found[row, :n], expected[row, :n])
    layout = Layout(length)
    flat, read = vectors[layout.row, layout.step], torch.tensor([2, 8, 10, 13])
    torch.testing.assert_close(module(flat, layout, read), module(flat, layout)[read])


@pytest.mark.parametrize("block", ["post_norm", "pre_norm", "ligr"])
def test_an_adapter_is_a_low_rank_map_beside_the_feed_forward(block):
    plain, adapted = encoder(block=block), encoder(block=block, n_streams=3, rank=2)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    layout = Layout(torch.tensor([5]))
    vectors = torch.randn(5, 16)
    for stream in range(3):  # nothing at first
        torch.testing.assert_close(adapted(vectors, layout, None, stream), plain(vectors, layout))
    inside = adapted.blocks[0]
    inside.adapter.up.data.normal_()
    wanted = inside.adapter.down[1] @ inside.adapter.up[1]
    assert torch.linalg.matrix_rank(wanted) == 2
    torch.testing.assert_close(
        inside.feed(vectors, 1) - inside.feed(vectors, 0),
        vectors @ (wanted - inside.adapter.down[0] @ inside.adapter.up[0]),
    )
    assert not torch.allclose(adapted(vectors, layout, None, 1), plain(vectors, layout))


@pytest.mark.parametrize("causal", [True, False])
def test_padding_that_is_not_masked_is_keys_of_zeros(causal):
    """By PyTorch's own attention over rows that are filled up with zero vectors."""
    module = encoder(block="sasrec", causal=causal, padding_mask=False)
    block, length = module.blocks[0], torch.tensor([9, 4, 1])
    block.qkv.bias.data.normal_()
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    attention.in_proj_weight, attention.in_proj_bias = block.qkv.weight, block.qkv.bias
    attention.out_proj = block.out
    layout = Layout(length)
    x = torch.randn(len(layout.row), 16)
    found = block.out(block.attended(block.qkv(x), layout, module.masks(layout), None))
    for row, n in enumerate(length.tolist()):
        own = x[layout.row == row]
        keys = torch.cat([own, torch.zeros(9 - n, 16)])[None]
        later = torch.ones(n, 9, dtype=torch.bool).triu(1)
        later[:, n:] = False  # padding, which each step sees
        mask = later if causal else None
        expected = attention(own[None], keys, keys, attn_mask=mask, need_weights=False)[0][0]
        torch.testing.assert_close(found[layout.row == row], expected)
