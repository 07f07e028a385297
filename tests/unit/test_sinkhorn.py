import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_dist.fusion.sinkhorn import COSTS, PLAN_GRADIENTS, cost_matrix, pairwise_cost, sinkhorn


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


@pytest.mark.parametrize("epsilon", [0.005, 0.05, 1.0])
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


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=4),
    epsilon=st.sampled_from([0.0005, 0.01, 0.05, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50)
def test_padded_problems_are_solved_together_as_each_alone(lengths, epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    C = torch.rand(len(lengths), 9, 7, generator=generator, dtype=torch.float64)
    there = tuple(
        torch.stack([torch.arange(size) < pair[axis] for pair in lengths]) for axis, size in enumerate((9, 7))
    )
    solved = sinkhorn(C, epsilon, 30, bound=1.0, there=there)
    assert solved.plan.sum() == pytest.approx(len(lengths))  # nothing goes to what is padded
    for number, (n, m) in enumerate(lengths):
        alone = sinkhorn(C[number, :n, :m], epsilon, 30, bound=1.0)
        torch.testing.assert_close(solved.plan[number, :n, :m], alone.plan, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(solved.f[number, :n], alone.f)
        torch.testing.assert_close(solved.g[number, :m], alone.g)
        torch.testing.assert_close(solved.marginal_error[number], alone.marginal_error, rtol=1e-6, atol=1e-12)


def gradient(C, epsilon, iterations, kind, there=None):
    """Of some function of the plan, with respect to the costs."""
    C = C.clone().requires_grad_()
    weights = torch.randn(C.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(C)
    plan = sinkhorn(C, epsilon, iterations, bound=1.0, there=there, gradient=kind).plan
    return torch.autograd.grad((weights * plan).sum(), C)[0]


@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 5)])
@pytest.mark.parametrize("iterations", [1, 20])
def test_the_unrolled_gradient_is_that_of_finite_differences(shape, iterations):
    C = torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    there = (
        (torch.tensor([[True] * 4, [True] * 3 + [False]]), torch.ones(2, 5, dtype=torch.bool)) if C.ndim > 2 else None
    )
    assert torch.autograd.gradcheck(
        lambda C: sinkhorn(C, 0.05, iterations, bound=1.0, there=there, gradient="unrolled").plan, (C,)
    )


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (6, 6), (9, 4)])
def test_the_envelope_gradient_is_the_unrolled_one_of_a_converged_plan(size, epsilon):
    C = torch.from_numpy(costs(*size, seed=2)).double()
    unrolled, envelope = (gradient(C, epsilon, 2000, kind) for kind in ("unrolled", "envelope"))
    torch.testing.assert_close(envelope, unrolled, rtol=1e-6, atol=1e-8)


def test_early_on_the_two_gradients_differ():
    C = torch.from_numpy(costs(6, 6, seed=2)).double()
    unrolled, envelope = (gradient(C, 0.02, 3, kind) for kind in ("unrolled", "envelope"))
    assert (unrolled - envelope).norm() > 0.01 * unrolled.norm()


@pytest.mark.parametrize("kind", ["unrolled", "envelope"])
def test_padding_neither_gets_nor_changes_a_gradient(kind):
    C = torch.from_numpy(costs(6, 5, seed=3)).double()
    there = torch.arange(6) < 4, torch.arange(5) < 3
    changed = C.clone()
    changed[4:], changed[:, 3:] = 0.5, 0.25
    found = gradient(C, 0.05, 100, kind, there)
    assert not found[4:].any()
    assert not found[:, 3:].any()
    assert found[:4, :3].any()
    torch.testing.assert_close(gradient(changed, 0.05, 100, kind, there), found)


@pytest.mark.parametrize("kind", ["unrolled", "envelope"])
@pytest.mark.parametrize("epsilon", [0.0005, 0.005, 0.05])
def test_float32_gradients_are_right_in_every_domain(kind, epsilon):
    C = torch.from_numpy(costs(24, 24, seed=4))
    exact = gradient(C.double(), epsilon, 50, kind)
    assert (gradient(C, epsilon, 50, kind) - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize("kind", PLAN_GRADIENTS)
def test_the_plan_is_the_same_with_any_gradient_and_only_it_has_one(kind):
    C = torch.from_numpy(costs(8, 8, seed=5)).double()
    solved = sinkhorn(C.requires_grad_(), 0.05, 50, gradient=kind)
    torch.testing.assert_close(solved.plan, sinkhorn(C, 0.05, 50).plan, rtol=1e-9, atol=0)
    assert [part.requires_grad for part in solved] == [kind != "none", False, False, False]


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
def test_costs_of_padded_problems_are_those_of_each_alone(kind):
    P, Q = torch.randn(2, 5, 3, generator=torch.manual_seed(0)), torch.randn(2, 4, 3, generator=torch.manual_seed(1))
    there = torch.arange(5) < torch.tensor([[5], [2]]), torch.arange(4) < torch.tensor([[1], [4]])
    found = cost_matrix(P, Q, kind, there)
    for number, (n, m) in enumerate([(5, 1), (2, 4)]):
        torch.testing.assert_close(found[number, :n, :m], cost_matrix(P[number, :n], Q[number, :m], kind))
        assert found[number].sum() == pytest.approx(float(found[number, :n, :m].sum()))


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", PLAN_GRADIENTS)
@pytest.mark.parametrize("epsilon", [0.0005, 0.005, 0.05])
@pytest.mark.parametrize("size", [(40, 30), (128, 128), (150, 130)])  # in one launch up to 128 x 128 in float32
def test_a_gpu_finds_the_plan_that_the_cpu_finds(size, epsilon, kind):
    C = torch.from_numpy(costs(*size, seed=10))
    here, there = (sinkhorn(C.to(device), epsilon, 50, bound=1.0, gradient=kind) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.plan.cpu(), here.plan, rtol=1e-4, atol=1e-9)
    for found, expected in zip(there[1:], here[1:], strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_solves_padded_problems_together():
    C = torch.rand(3, 60, 50, generator=torch.Generator().manual_seed(0))
    there = (
        torch.arange(60) < torch.tensor([[60], [1], [17]]),
        torch.arange(50) < torch.tensor([[50], [3], [20]]),
    )
    here = sinkhorn(C, 0.05, 50, bound=1.0, there=there)
    found = sinkhorn(C.cuda(), 0.05, 50, bound=1.0, there=(there[0].cuda(), there[1].cuda()))
    torch.testing.assert_close([part.cpu() for part in found], list(here), rtol=1e-4, atol=1e-6)


def test_an_unknown_cost_is_refused():
    with pytest.raises(ValueError, match="euclidean"):
        pairwise_cost(torch.ones(2, 2), torch.ones(2, 2), "manhattan")
