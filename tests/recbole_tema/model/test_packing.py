import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_tema.model.packing import Layout, take_once

lengths = st.lists(st.integers(0, 12), min_size=1, max_size=30)


@given(lengths)
def test_packed_steps_are_the_rows_one_after_another(length):
    layout = Layout(torch.tensor(length))
    expected = [(row, step) for row, n in enumerate(length) for step in range(n)]
    assert list(zip(layout.row.tolist(), layout.step.tolist(), strict=True)) == expected
    assert layout.start.tolist() == [sum(length[:row]) for row in range(len(length))]


@given(lengths)
def test_padding_puts_every_step_of_a_row_beside_its_own(length):
    layout = Layout(torch.tensor(length))
    packed = torch.stack([layout.row + 1, layout.step + 1], dim=1).float()
    rows_seen = []
    for group in layout.pad(packed):
        for row in group:
            number, n = int(row[0, 0]) - 1, int((row[:, 0] > 0).sum())
            rows_seen.append(number)
            assert n == length[number]
            assert (row[:n, 0] == number + 1).all() and (row[n:] == 0).all()
            assert row[:n, 1].tolist() == list(range(1, n + 1))
    assert sorted(rows_seen) == [row for row, n in enumerate(length) if n]


@given(lengths)
def test_unpadding_and_its_gradient_undo_padding(length):
    layout = Layout(torch.tensor(length))
    if not sum(length):
        assert layout.groups == []
        return
    packed = torch.randn(sum(length), 3, dtype=torch.double, requires_grad=True)
    back = layout.unpad([group.flatten(0, 1) for group in layout.pad(packed)])
    assert torch.equal(back, packed)
    weight = torch.randn_like(packed)
    (back * weight).sum().backward()
    assert torch.equal(packed.grad, weight)


@given(lengths)
def test_key_masks_tell_real_steps(length):
    layout = Layout(torch.tensor(length))
    ones = torch.ones(sum(length), 1)
    for mask, group in zip(layout.key_masks(), layout.pad(ones), strict=True):
        assert torch.equal(mask[:, 0, 0], group[..., 0] > 0)


@given(lengths)
def test_rows_of_like_length_share_a_group(length):
    layout = Layout(torch.tensor(length))
    if layout.size < Layout.LITTLE_PADDING * sum(length):
        return
    for rows, (_, longest) in zip(layout.group_lengths, layout.groups, strict=True):
        assert longest == max(rows)
        assert longest <= max(length) // 8 or longest <= 2 * min(rows)


def test_take_once_has_the_gradient_of_indexing():
    table = torch.randn(6, 4, dtype=torch.double, requires_grad=True)
    index = torch.tensor([4, 0, 5])
    assert torch.equal(take_once(table, index), table[index])
    assert torch.autograd.gradcheck(take_once, (table, index))
