import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from parrot_dist.fusion import HEADS, Reference, build_head, pick_reference
from parrot_dist.fusion.sinkhorn import COSTS, cost_matrix, sinkhorn


def rows(n, seed, dtype=torch.float64):
    generator = torch.manual_seed(seed)
    return torch.randn(n, 120, generator=generator, dtype=dtype), torch.randn(n, 120, generator=generator, dtype=dtype)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.5])
def test_the_map_of_the_references_own_rows_is_the_plans_projection(cost, epsilon):
    R_p, R_q = rows(24, seed=0)
    plan = sinkhorn(cost_matrix(R_p, R_q, cost), epsilon, 5000).plan
    p_to_q, q_to_p = Reference.fit(R_p, R_q, epsilon, cost).transport(R_p, R_q)
    torch.testing.assert_close(q_to_p, 24 * plan @ R_q, rtol=0, atol=1e-4)
    torch.testing.assert_close(p_to_q, 24 * plan.T @ R_p, rtol=0, atol=1e-4)


def clustered(n, clusters, noise, seed):
    """Rows whose clusters have their centres in common, but not their sizes, so that many rows must move far."""
    R_p, R_q = rows(n, seed)
    centres = torch.randn(clusters, 120, dtype=torch.float64)
    here, there = torch.randint(clusters, (2, n))
    return centres[here] + noise * R_p, centres[there] + noise * R_q


@given(
    n=st.integers(2, 60),
    clusters=st.integers(1, 8),
    noise=st.sampled_from([0.0, 0.02, 0.1, 0.5]),
    epsilon=st.sampled_from([1, 0.2, 0.05, 0.01, 0.002]),
    cost=st.sampled_from(COSTS),
    seed=st.integers(0, 1000),
)
def test_the_fit_converges_however_the_rows_lie(n, clusters, noise, epsilon, cost, seed):
    assert Reference.fit(*clustered(n, clusters, noise, seed), epsilon, cost).marginal_error < 1e-4


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.005])
def test_the_fit_of_many_clustered_rows_in_float32_converges(epsilon):
    R_p, R_q = clustered(512, 6, 0.1, seed=0)
    assert Reference.fit(R_p.float(), R_q.float(), epsilon, "euclidean").marginal_error < 1e-5


def test_a_fit_that_does_not_converge_says_so(caplog):
    R_p, R_q = rows(16, seed=9, dtype=torch.float32)
    Reference.fit(R_p, R_q, 0.05, "euclidean")
    assert caplog.text == ""
    Reference.fit(R_p, R_q, 1e-6, "euclidean")
    assert "off its marginals" in caplog.text
    assert "fusion.epsilon=1e-06 is too small" in caplog.text


def test_the_marginal_error_is_that_of_the_plan_with_these_potentials():
    reference = Reference.fit(*rows(8, seed=8), 0.05, "euclidean")
    off = replace(reference, f=reference.f + 0.05 * math.log(1.5))  # half as much mass again in every row
    assert off.marginal_error == pytest.approx(0.5, abs=1e-5)


def test_float32_rows_give_a_float32_reference_that_agrees():
    R_p, R_q = rows(32, seed=2)
    exact = Reference.fit(R_p, R_q, 0.05, "euclidean").transport(R_p, R_q)
    single = Reference.fit(R_p.float(), R_q.float(), 0.05, "euclidean").transport(R_p.float(), R_q.float())
    for a, b in zip(single, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 1e-5 * b.norm()


def test_a_new_row_lands_where_its_like_does():
    """Two far clusters: a row near one maps onto that cluster's partner, whatever else is predicted beside it."""
    centres = torch.eye(2, 120) * 10
    cluster = torch.arange(20) % 2
    R_p, R_q = rows(20, seed=3, dtype=torch.float32)
    R_p, R_q = centres[cluster] + 0.1 * R_p, centres[cluster] + 0.1 * R_q
    reference = Reference.fit(R_p, R_q, 0.05, "euclidean")
    new = centres + 0.05
    for moved in reference.transport(new, new):
        assert (moved - centres).norm(dim=1).max() < 1


def test_it_survives_a_safetensors_file():
    reference = Reference.fit(*rows(8, seed=4), 0.02, "cosine")
    back = Reference.from_tensors(load(save(reference.to_tensors())))
    assert (back.epsilon, back.cost) == (0.02, "cosine")
    new = rows(3, seed=5)
    assert all(map(torch.equal, back.transport(*new), reference.transport(*new)))


def test_it_needs_every_tensor():
    tensors = Reference.fit(*rows(8, seed=6), 0.05, "euclidean").to_tensors()
    del tensors["f"]
    with pytest.raises(KeyError):
        Reference.from_tensors(tensors)


def test_autocast_does_not_reach_the_map():
    R_p, R_q = rows(8, seed=7, dtype=torch.float32)
    reference = Reference.fit(R_p, R_q, 0.05, "cosine")
    with torch.autocast("cpu", torch.bfloat16):
        inside = reference.transport(R_p, R_q)
    assert all(map(torch.equal, inside, reference.transport(R_p, R_q)))


def test_a_reference_of_equal_rows_is_finite():
    same = torch.ones(4, 120)
    reference = Reference.fit(same, same, 0.05, "euclidean")
    for moved in reference.transport(same[:1] + 1, same[:1]):
        torch.testing.assert_close(moved, same[:1])


@pytest.fixture(scope="module")
def situation():
    torch.manual_seed(0)
    mamba, attention = torch.randn(40, 50), torch.randn(40, 37)
    heads = {name: build_head(name, 50, 37, 6).eval() for name in HEADS}
    references = {
        name: Reference.fit(*head.rows(mamba, attention), 0.05, "euclidean") if head.needs_reference else None
        for name, head in heads.items()
    }
    return heads, references, torch.randn(13, 50), torch.randn(13, 37)


@pytest.mark.parametrize("name", list(HEADS))
@given(order=st.permutations(range(13)), size=st.integers(1, 13))
def test_predictions_are_the_same_bits_in_any_batch_and_order(situation, name, order, size):
    heads, references, mamba, attention = situation
    whole = heads[name].predict_alone(mamba, attention, references[name])
    chunks = [order[i : i + size] for i in range(0, 13, size)]
    parts = [heads[name].predict_alone(mamba[chunk], attention[chunk], references[name]) for chunk in chunks]
    assert torch.equal(torch.cat(parts), whole[order])


def test_reference_rows_are_predicted_as_in_their_own_batch():
    """In the reference's own batch, the batch-coupled and the lone prediction are the same thing once converged."""
    torch.manual_seed(1)
    head = build_head("parrot", 20, 24, 4, iterations=2000).double().eval()
    mamba, attention = torch.randn(16, 20).double(), torch.randn(16, 24).double()
    reference = Reference.fit(*head.rows(mamba, attention), 0.05, "euclidean")
    alone = head.predict_alone(mamba, attention, reference)
    assert not alone.requires_grad
    torch.testing.assert_close(alone, head(mamba, attention).detach(), rtol=1e-6, atol=1e-8)


def test_a_transporting_head_refuses_to_go_without():
    with pytest.raises(ValueError, match="reference"):
        build_head("parrot", 8, 8, 2).eval().predict_alone(torch.ones(1, 8), torch.ones(1, 8), None)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    count=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_picks_are_distinct_sorted_balanced_and_repeatable(labels, count, seed):
    labels = np.array(labels)
    picked = pick_reference(labels, count, seed)
    assert np.array_equal(picked, pick_reference(labels, count, seed))
    assert len(picked) == min(count, len(labels))
    assert (np.diff(picked) > 0).all()
    available, taken = np.bincount(labels, minlength=5), np.bincount(labels[picked], minlength=5)
    # Balanced: no class has two more than another that still had samples to give.
    assert all(taken[c] + 1 >= taken.max() for c in range(5) if taken[c] < available[c])


def test_picks_depend_on_the_seed():
    labels = np.arange(200) % 5
    assert not np.array_equal(pick_reference(labels, 20, 0), pick_reference(labels, 20, 1))
