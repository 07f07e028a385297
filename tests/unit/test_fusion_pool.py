"""Pooling of neighbours against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.fusion.pool import pool_pairs


@given(st.integers(1, 3), st.integers(2, 9), st.integers(0, 2**31))
def test_values_and_gradients_are_those_of_max_pool1d_ties_included(rows: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (rows, 2, length), generator=generator).double().requires_grad_()
    ours, theirs = pool_pairs(x), F.max_pool1d(x, 2)
    assert torch.equal(ours, theirs)
    weight = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    one, other = (torch.autograd.grad((pooled * weight).sum(), x)[0] for pooled in (ours, theirs))
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_stays(dtype: torch.dtype) -> None:
    assert pool_pairs(torch.ones(1, 1, 4, dtype=dtype)).dtype == dtype
