"""Late fusion: the score is the weighted sum of what models of one part each would score."""

import pytest
import torch

from tests.recbole_tema.model.test_models import build, total

PARTS = {"id": "use_id", "tag": "use_tags", "text": "use_text"}
ALONE = dict.fromkeys(PARTS.values(), False)
KEYS = {"exclude_history": False, "id_init": "normal"}


def of_part(name, part, number, late):
    """A late model's weight ``name`` as the model of one part alone has it; None: not its own."""
    weight = late[name]
    own = "item_embedding" if part == "id" else f"projections.{part}."
    if name.startswith(("item_embedding", "projections.")):
        return (name, weight) if name.startswith(own) else None
    if name == "part_weights":
        return None
    if name == "empty":
        return name, weight.chunk(len(PARTS), dim=1)[number]
    if ".of_parts." in name:
        shared = not any(".of_parts.1." in other for other in late)
        if not shared and f".of_parts.{number}." not in name:
            return None
        return name.replace(f".of_parts.{0 if shared else number}", ""), weight
    return name, weight


@pytest.mark.parametrize("encoder", ["own", "shared"])
@pytest.mark.parametrize(
    "more",
    [
        {"similarity": "cosine"},
        {"similarity": "cosine", "use_intra": False, "domain_token": True},
        {"similarity": "dot", "use_inter": False},
    ],
    ids=["cosine", "token", "dot"],
)
def test_scores_are_those_of_the_parts_with_learned_weights(settings, encoder, more):
    keys = {**KEYS, **more}
    late, prepared, _ = build(settings, fusion="late", late_encoder=encoder, **keys)
    generator = torch.Generator().manual_seed(3)
    for parameter in late.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    weights = late.state_dict()
    shares = weights["part_weights"].softmax(0)
    _, batch = next(iter(prepared.eval_data["test"]))
    expected = 0
    for number, (part, switch) in enumerate(PARTS.items()):
        alone, _, _ = build(settings, **{**keys, **ALONE, switch: True})
        pairs = [of_part(name, part, number, weights) for name in weights]
        alone.load_state_dict(dict(filter(None, pairs)))
        expected += shares[number] * alone.eval().full_sort_predict(batch)[:, 1:]
    found = late.eval().full_sort_predict(batch)[:, 1:]
    assert torch.allclose(found, expected, atol=1e-4)
    assert len({round(float(share), 4) for share in shares}) == len(PARTS)


@pytest.mark.parametrize("softmax", [{}, {"full_softmax_items": 5, "sampled_softmax_items": 20}])
def test_every_part_learns_and_so_do_the_weights(settings, softmax):
    keys = {**KEYS, **softmax, "similarity": "cosine"}
    late, prepared, _ = build(settings, fusion="late", late_encoder="own", **keys)
    optimizer = torch.optim.Adam(late.parameters(), lr=0.01)
    batch = next(iter(prepared.train_data))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = total(late.calculate_loss(batch))
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] and late.part_weights.detach().std() > 0
    assert [n for n, p in late.named_parameters() if p.grad is None] == []


def test_one_part_has_nothing_to_fuse(settings):
    late, _, _ = build(settings, fusion="late", **{**KEYS, **ALONE, "use_id": True})
    early, _, _ = build(settings, **{**KEYS, **ALONE, "use_id": True})
    assert list(late.state_dict()) == list(early.state_dict())
