"""The penalty on attention between domains."""

import math

import pytest
import torch

from recbole_tema.errors import ConfigError
from recbole_tema.model.crossing import cross_domain_mass, crossings
from recbole_tema.model.encoder import SequenceEncoder
from recbole_tema.model.packing import Layout
from tests.recbole_tema.model.test_models import build


def test_the_mass_of_a_step_at_a_time():
    torch.manual_seed(0)
    layout = Layout(torch.tensor([4, 0, 1, 3]))
    qkv, domain = torch.randn(8, 3 * 6), torch.tensor([1, 2, 2, 1, 3, 1, 1, 2])
    wanted = 0.0
    for step in range(8):
        first = int(layout.start[layout.row[step]])
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            query, keys = qkv[step, :6][part], qkv[first : step + 1, 6:12][:, part]
            weight = (keys @ query / math.sqrt(3)).softmax(0)
            wanted += weight[domain[first : step + 1] != domain[step]].sum().item() / 16
    assert cross_domain_mass(qkv, layout, domain, 2).item() == pytest.approx(wanted, abs=1e-6)
    one = torch.ones_like(domain)
    assert cross_domain_mass(qkv, layout, one, 2) == 0


def test_an_attention_that_is_not_read_is_refused():
    encoder = SequenceEncoder(
        4, 3, n_layers=1, n_heads=1, inner_size=4, dropout=0.0, attn_dropout=0.0
    )
    layout = Layout(torch.tensor([2]))
    with (
        pytest.raises(ConfigError, match="cross_attention_weight"),
        crossings(encoder, layout, torch.tensor([1, 2])),
    ):
        pass
    assert not encoder.blocks[0].qkv._forward_hooks


@pytest.mark.parametrize(
    "keys", [{}, {"domain_adapter": 2}, {"use_intra": False}, {"fusion": "late"}], ids=str
)
def test_the_penalty_is_learned_and_changes_no_score(settings, keys):
    plain, prepared, _ = build(settings, name="three", **keys)
    model, _, _ = build(settings, name="three", cross_attention_weight=2.0, **keys)
    model.load_state_dict(plain.state_dict())
    batch = next(iter(prepared.train_data))
    terms = [m.eval().calculate_loss(batch) for m in (plain, model)]
    terms[0] = terms[0] if isinstance(terms[0], tuple) else (terms[0],)
    assert torch.equal(torch.stack(terms[1][:-1]), torch.stack(terms[0]))
    assert len(terms[1]) == len(model.loss_names)
    assert model.loss_names[-1] == "cross-attention"
    optimizer = torch.optim.Adam(model.inter_encoder.parameters(), lr=0.01)
    found = []
    for _ in range(10):
        optimizer.zero_grad()
        found.append(model.calculate_loss(batch)[-1])
        found[-1].backward()
        optimizer.step()
    assert 0 < found[-1] < 0.9 * found[0] < 2
