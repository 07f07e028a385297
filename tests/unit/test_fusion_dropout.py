import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.fusion import build_head, row_keys
from parrot_dist.fusion.dropout import GOLDEN_GAMMA, keyed_dropout, mix, uniform

BIG = st.integers(-(2**63), 2**63 - 1)


def splitmix64(z):
    """The published finaliser over Python's integers."""
    z &= 2**64 - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return z ^ (z >> 31)


@given(BIG)
def test_mix_is_splitmix64(value):
    assert int(mix(torch.tensor([value]))[0]) & (2**64 - 1) == splitmix64(value)


def test_mix_gives_the_published_sequence():
    """The first outputs of SplitMix64 seeded with 1234567, as its reference implementation prints them."""
    states = torch.tensor([1234567]) + GOLDEN_GAMMA * torch.arange(1, 4)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(z) & (2**64 - 1) for z in mix(states)] == expected


@given(st.lists(BIG, min_size=1, max_size=8), st.integers(1, 40))
def test_numbers_depend_on_key_and_unit_alone(keys, units):
    whole = uniform(torch.tensor(keys), units + 5)
    assert ((whole >= 0) & (whole < 1)).all()
    for row, key in enumerate(keys):
        assert torch.equal(uniform(torch.tensor([key]), units)[0], whole[row, :units])


def test_numbers_are_uniform_and_uncorrelated():
    draws = uniform(row_keys(0, 0, torch.arange(4000)), 128)
    deciles = torch.histc(draws, 10, 0, 1) / draws.numel()
    assert (deciles - 0.1).abs().max() < 0.003
    centred = draws - 0.5
    for other in (centred.roll(1, 0), centred.roll(1, 1)):
        assert abs(float((centred * other).mean() * 12)) < 0.01


def test_keys_differ_by_seed_step_and_sample():
    samples = torch.arange(300)
    keys = torch.cat([row_keys(seed, step, samples) for seed in range(10) for step in range(10)])
    assert len(keys.unique()) == len(keys) == 30_000
    assert torch.equal(row_keys(3, 7, samples)[5:6], row_keys(3, 7, torch.tensor([5])))


def test_dropout_keeps_the_mean_and_the_scale():
    x = torch.ones(2000, 128)
    dropped = keyed_dropout(x, 0.3, row_keys(1, 2, torch.arange(2000)))
    assert abs(float((dropped == 0).float().mean()) - 0.3) < 0.005
    assert torch.equal(dropped.unique(), torch.tensor([0.0, 1 / 0.7]))


@pytest.mark.parametrize("name", ["parrot", "fcn"])
def test_a_rows_mask_follows_the_row(name):
    torch.manual_seed(0)
    head = build_head(name, 16, 16, 3).double().train()
    mamba, attention = torch.randn(2, 8, 16).double()
    keys, order = row_keys(0, 3, torch.arange(8)), torch.randperm(8)
    logits = head(mamba, attention, keys)
    torch.testing.assert_close(head(mamba[order], attention[order], keys[order]), logits[order], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(head(mamba, attention, row_keys(0, 4, torch.arange(8))), logits)
    assert not torch.allclose(head.eval()(mamba, attention), logits)


def test_training_without_keys_drops_at_random():
    torch.manual_seed(0)
    x, head = torch.randn(4, 16), build_head("fcn", 16, 16, 3)
    assert not torch.equal(head(x, x), head(x, x))
    assert torch.equal(head.eval()(x, x), head(x, x))
