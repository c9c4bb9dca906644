"""How the threads' states become a preference for each domain: adapters, alignment, tokens."""

import pytest
import torch
from torch.nn import functional as F

from recbole_tema.model.preference import AlignedPreference, DomainToken
from tests.recbole_tema.model.test_models import build, total


def test_an_aligned_preference_is_of_two_threads_alone():
    torch.manual_seed(0)
    module = AlignedPreference(6, 3, 8, 2, 0.5, 1e-12).eval()
    module.adapter.up.data.normal_()
    inter, intra = torch.randn(4, 6), torch.randn(4, 3, 6)
    found = module(inter, intra)

    def swiglu(part, x):
        gate, value = (x @ part.inner.weight.T).split(8, dim=-1)
        return (F.silu(gate) * value) @ part.outer.weight.T

    for k in range(3):
        low_rank = module.adapter.down[k] @ module.adapter.up[k]
        merged = inter + swiglu(module.shared, inter) + inter @ low_rank
        own = intra[:, k] + swiglu(module.own[k], intra[:, k])
        wanted = F.layer_norm(merged, (6,), eps=1e-12) + F.layer_norm(own, (6,), eps=1e-12)
        torch.testing.assert_close(found[:, k], wanted)
    other = intra.clone()
    other[:, 1] += 1
    changed = (module(inter, other) - found).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [False, True, False]


def test_a_domain_token_leaves_the_state_alone_at_first():
    torch.manual_seed(0)
    module = DomainToken(6, 3, 0.5).eval()
    state = torch.randn(4, 6)
    torch.nn.init.zeros_(module.outer.bias)
    module.start()
    torch.testing.assert_close(module(state), state[:, None].expand(4, 3, 6))
    module.outer.weight.data.normal_()
    found = module(state)
    for k in range(3):
        hidden = F.gelu(state @ module.inner.weight.T + module.inner.bias + module.token.weight[k])
        torch.testing.assert_close(found[:, k], state + hidden @ module.outer.weight.T)


def test_threads_of_one_encoder_differ_by_their_adapters_alone(settings):
    shared, prepared, _ = build(settings, domain_adapter=3)
    own, _, _ = build(settings, domain_adapter=0)
    state = shared.state_dict()
    for name in own.state_dict():
        if name.startswith("intra_encoders."):  # copies of the one encoder
            _, _, rest = name.split(".", 2)
            state[name] = state[f"inter_encoder.{rest}"]
    own.load_state_dict({k: v for k, v in state.items() if ".adapter." not in k})
    _, batch = next(iter(prepared.eval_data["test"]))
    shared.eval(), own.eval()
    with torch.no_grad():
        before = own.full_sort_predict(batch)
        torch.testing.assert_close(shared.full_sort_predict(batch), before)
        for block in shared.inter_encoder.blocks:  # of the second domain's thread
            block.adapter.up[2].normal_()
        shared._tables = None
        assert (shared.full_sort_predict(batch)[:, 1:] - before[:, 1:]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "keys",
    [
        {"domain_adapter": 2, "preference": "aligned"},
        {"preference": "aligned", "block": "ligr"},
        {"use_intra": False, "domain_token": True},
        {"use_intra": False, "domain_token": True, "full_softmax_items": 5},
    ],
    ids=str,
)
def test_a_row_is_trained_as_it_is_scored(settings, keys):
    model, prepared, _ = build(settings, name="three", train_rows="prefix", **keys)
    batch = next(iter(prepared.train_data))
    model.train()
    total(model.calculate_loss(batch)).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        model.eval()
        scores = model.full_sort_predict(batch)[:, 1:]
        target = batch["target_id_list"].sum(1)
        wanted = F.cross_entropy(scores, target - 1)
        loss = model.calculate_loss(batch)
        loss = loss[0] if isinstance(loss, tuple) else loss
        history = batch["item_id_list"], batch["item_length"]
        states = model.last_states(model.item_tables(), *history)
    assert (states[:, 0] - states[:, 1]).abs().max() > 1e-3  # each domain has its own
    if "full_softmax_items" not in keys:
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)


def test_keys_of_threads_that_are_not_there_are_told(settings, caplog):
    keys = {"preference": "aligned", "domain_token": True, "share_intra": True}
    build(settings, **keys, domain_adapter=2)
    for told in ("domain_token (config_dict; use_intra is True)", "domain_adapter is 2)"):
        assert told in caplog.text
    build(settings, **keys, use_intra=False)
    assert "preference (config_dict; use_intra is False)" in caplog.text
