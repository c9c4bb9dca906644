"""Threads of both models against a dense reference that encodes one sequence at a time."""

import numpy as np
import pytest
import torch

from recbole_tema.model.packing import Layout
from tests.recbole_tema.model.test_models import build


def encode(encoder, x):
    """States ``(L, H)`` of one sequence, attention head by head, no padding and no packing."""
    length, hidden = x.shape
    x = encoder.norm(x + encoder.position.weight[:length])
    for block in encoder.blocks:
        query, key, value = block.qkv(x).split(hidden, dim=1)
        width = hidden // block.n_heads
        heads = []
        for head in range(block.n_heads):
            part = slice(head * width, (head + 1) * width)
            score = query[:, part] @ key[:, part].T / width**0.5
            if encoder.causal:
                score = score + torch.full((length, length), -torch.inf).triu(1)
            heads.append(score.softmax(-1) @ value[:, part])
        x = block.attn_norm(x + block.out(torch.cat(heads, dim=1)))
        x = block.norm(x + block.outer(block.act(block.inner(x))))
    return x


def reference(model, merged, merged_encoder, own, own_encoders, rows):
    """(merged states ``(n, H)``, domain states ``(n, D, H)``) at every step of all rows."""
    merged_states, domain_states = [], []
    for items in rows:
        merged_states.append(encode(merged_encoder, merged[items]))
        domain = model.item_domain[items]
        threads = []
        for d, encoder in enumerate(own_encoders):
            steps = (domain == d + 1).nonzero().flatten()
            states = [model.empty[d], *(encode(encoder, own[items[steps]]) if len(steps) else [])]
            threads.append(
                torch.stack([states[int((steps <= t).sum())] for t in range(len(items))])
            )
        domain_states.append(torch.stack(threads, dim=1))
    return torch.cat(merged_states), torch.cat(domain_states)


def random_rows(model, rng, only_domain=None):
    domain = model.item_domain.numpy()
    rows = []
    for _ in range(7):
        wanted = only_domain or rng.integers(model.n_domains + 1)
        pool = np.flatnonzero(domain == wanted) if wanted else np.flatnonzero(domain)
        rows.append(torch.from_numpy(rng.choice(pool, rng.integers(1, 9))))
    return rows


@pytest.mark.parametrize("only_domain", [None, 1], ids=["mixed", "one domain in the batch"])
@pytest.mark.parametrize("name", ["tiny", "three"])
@pytest.mark.parametrize(
    ("model_name", "keys"),
    [("TEMA", {}), ("TEMA", {"share_intra": True}), ("LLM4CDSR", {}), ("LLM4CDSR", {"causal": 0})],
    ids=["TEMA", "TEMA, shared", "LLM4CDSR", "LLM4CDSR, not causal"],
)
def test_states_and_gradients(settings, model_name, keys, name, only_domain):
    keys = {key: bool(value) for key, value in keys.items()}
    model, _, _ = build(
        settings, model_name, name, hidden_dropout_prob=0.0, attn_dropout_prob=0.0, **keys
    )
    model.double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rng = np.random.default_rng(3)
    rows = random_rows(model, rng, only_domain)
    items, layout = torch.cat(rows), Layout(torch.tensor([len(row) for row in rows]))
    read = torch.from_numpy(rng.permutation(len(items))[: len(items) // 2])
    tables = model.item_tables()
    if model_name == "TEMA":
        found = model.threads(tables[0], items, layout, read)
        encoders = [
            model.intra_encoders[d % len(model.intra_encoders)] for d in range(model.n_domains)
        ]
        expected = reference(model, tables[0], model.inter_encoder, tables[0], encoders, rows)
    else:
        found = model.threads(tables, items, layout, read)
        expected = reference(
            model, tables[0], model.global_encoder, tables[1], model.local_encoders, rows
        )
    weights = [torch.randn_like(states) for states in found]
    gradients = []
    for states in (found, [states[read] for states in expected]):
        model.zero_grad()
        sum((s * w).sum() for s, w in zip(states, weights, strict=True)).backward(retain_graph=True)
        gradients.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in model.named_parameters()
            }
        )
    for mine, states in zip(found, expected, strict=True):
        assert torch.allclose(mine, states[read], atol=1e-9)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-7), name
