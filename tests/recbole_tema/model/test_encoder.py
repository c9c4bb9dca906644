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
