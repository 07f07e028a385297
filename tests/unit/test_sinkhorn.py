import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_dist.fusion.sinkhorn import COSTS, cost_matrix, pairwise_cost, sinkhorn


def pot_plan(C, epsilon, iterations, solver=ot.sinkhorn):
    n, m = C.shape
    weights = np.full(n, 1 / n), np.full(m, 1 / m)
    return solver(*weights, C.astype(np.float64), epsilon, numItermax=iterations, stopThr=0, warn=False)


def costs(n, m, seed, shape=1.0):
    """Costs with maximum 1; a small `shape` crowds them near 1, where rounding hurts float32 most."""
    C = np.random.default_rng(seed).random((n, m)) ** shape
    return (C / C.max()).astype(np.float32)


@given(
    n=st.integers(2, 24),
    m=st.integers(2, 24),
    epsilon=st.floats(0.005, 1.0),
    iterations=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([0.02, 0.3, 1.0, 4.0]),
)
@settings(max_examples=150)
def test_plan_equals_pots(n, m, epsilon, iterations, seed, shape):
    C = costs(n, m, seed, shape)
    plan = sinkhorn(torch.from_numpy(C), epsilon, iterations).plan.numpy()
    np.testing.assert_allclose(plan, pot_plan(C, epsilon, iterations), rtol=0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.005, 0.02, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("size", [(2, 2), (256, 256), (300, 128)])
def test_plan_equals_pots_at_the_edges(size, epsilon):
    C = costs(*size, seed=1)
    plan = sinkhorn(torch.from_numpy(C), epsilon, 50).plan.numpy()
    np.testing.assert_allclose(plan, pot_plan(C, epsilon, 50), rtol=1e-4, atol=1e-6 / max(size))


@pytest.mark.parametrize("epsilon", [0.005, 0.05])
def test_plan_equals_pots_at_2048_rows(epsilon):
    C = costs(2048, 2048, seed=2)
    plan = sinkhorn(torch.from_numpy(C), epsilon, 10).plan.numpy()
    # One over two thousand is the size of a whole row, so the bound has to shrink with it to say anything.
    np.testing.assert_allclose(plan, pot_plan(C, epsilon, 10), rtol=0, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.0005, 0.002])
def test_log_domain_takes_over_where_scaling_would_underflow(epsilon):
    C = costs(12, 9, seed=3)
    C[0], C[:, 0] = 1.0, 1.0
    solved = sinkhorn(torch.from_numpy(C), epsilon, 200)
    expected = pot_plan(C, epsilon, 200, ot.bregman.sinkhorn_log)
    np.testing.assert_allclose(solved.plan.numpy(), expected, rtol=0, atol=1e-6)
    assert solved.plan.isfinite().all()
    assert solved.f.isfinite().all()


@given(
    exponent=st.floats(1.0, 2000.0),
    seed=st.integers(0, 2**32 - 1),
    double=st.booleans(),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
)
@settings(max_examples=100)
def test_every_domain_stays_finite_with_exact_rows(exponent, seed, double, n, m):
    C = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 2, (n, m)).astype(np.float64 if double else np.float32)
    )
    solved = sinkhorn(C, 1 / exponent, 50)
    assert solved.plan.dtype == C.dtype
    assert all(part.isfinite().all() for part in solved)
    torch.testing.assert_close(solved.plan.sum(1), torch.full((n,), 1 / n, dtype=C.dtype))
    assert 0 <= solved.marginal_error <= 2.001


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.0005])
def test_potentials_rebuild_the_plan(epsilon):
    C = torch.from_numpy(costs(6, 9, seed=4)).double()
    solved = sinkhorn(C, epsilon, 50)
    rebuilt = ((solved.f[:, None] + solved.g - C) / epsilon).exp()
    torch.testing.assert_close(rebuilt, solved.plan, rtol=1e-9, atol=1e-300)


def test_marginal_error_is_that_of_the_columns_and_falls():
    C = torch.from_numpy(costs(20, 20, seed=5)).double()
    early, late = sinkhorn(C, 0.02, 2), sinkhorn(C, 0.02, 2000)
    torch.testing.assert_close(early.marginal_error, (early.plan.sum(0) - 1 / 20).abs().sum())
    assert early.marginal_error > 1e-3
    assert late.marginal_error < 1e-12


def test_the_bound_changes_nothing():
    C = torch.from_numpy(costs(8, 8, seed=6))
    assert torch.equal(sinkhorn(C, 0.05, 50).plan, sinkhorn(C, 0.05, 50, bound=1.0).plan)


def test_autocast_does_not_reach_the_solver():
    C = torch.from_numpy(costs(8, 8, seed=7))
    with torch.autocast("cpu", torch.bfloat16):
        inside = sinkhorn(C, 0.05, 50)
    assert inside.plan.dtype == torch.float32
    assert torch.equal(inside.plan, sinkhorn(C, 0.05, 50).plan)


def test_half_precision_costs_are_solved_in_float32():
    C = torch.from_numpy(costs(8, 8, seed=8)).bfloat16()
    assert torch.equal(sinkhorn(C, 0.05, 50).plan, sinkhorn(C.float(), 0.05, 50).plan)


def test_the_cost_given_is_left_alone_and_no_gradient_flows():
    C = torch.from_numpy(costs(4, 4, seed=9)).requires_grad_()
    before = C.detach().clone()
    assert not sinkhorn(C, 0.05, 5).plan.requires_grad
    assert torch.equal(C, before)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.0, 5), (-1.0, 5), (0.05, 0)])
def test_settings_without_a_meaning_are_refused(epsilon, iterations):
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn(torch.ones(2, 2), epsilon, iterations)


@pytest.mark.parametrize(
    ("kind", "metric"), [("euclidean", "euclidean"), ("squared", "sqeuclidean"), ("cosine", "cosine")]
)
def test_costs_equal_pots(kind, metric):
    P, Q = torch.randn(7, 5, generator=torch.manual_seed(0)), torch.randn(4, 5, generator=torch.manual_seed(1))
    expected = ot.dist(P.double().numpy(), Q.double().numpy(), metric)
    np.testing.assert_allclose(pairwise_cost(P, Q, kind).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cost_matrix(P, Q, kind).numpy(), expected / expected.max(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", COSTS)
def test_rows_that_are_all_the_same_cost_nothing(kind):
    rows = torch.ones(5, 3)
    C = cost_matrix(rows, rows, kind)
    assert C.max() <= 1
    assert C.min() >= 0
    torch.testing.assert_close(sinkhorn(C * 0, 0.05, 5).plan, torch.full((5, 5), 1 / 25))
    if kind != "cosine":
        assert torch.equal(C, torch.zeros(5, 5))


def test_near_rows_keep_their_distance():
    """The matrix-product form of the distance gives 0 or 0.03 here."""
    P = torch.full((64, 120), 100.0)
    Q = P + 1e-3
    torch.testing.assert_close(
        pairwise_cost(P, Q, "euclidean"), torch.cdist(P.double(), Q.double()).float(), rtol=1e-3, atol=0
    )
    assert math.isclose(float(pairwise_cost(P, Q, "euclidean")[0, 0]), 1e-3 * math.sqrt(120), rel_tol=0.05)


def test_an_unknown_cost_is_refused():
    with pytest.raises(ValueError, match="euclidean"):
        pairwise_cost(torch.ones(2, 2), torch.ones(2, 2), "manhattan")
