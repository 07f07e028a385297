from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parrot_dist.errors import UserError
from parrot_dist.fusion import HEADS, PairHead, build_head, row_keys
from parrot_dist.fusion.heads import ROW
from parrot_dist.fusion.sinkhorn import COSTS, cost_matrix, sinkhorn

GOLDEN = Path(__file__).parents[1] / "data" / "parrot_head" / "expected.npz"
FUSIONS = ("parrot", "hadamard", "ot", "concat")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name].copy()) for name in arrays}


def golden_head(golden, name):
    """The golden weights by their roles: those of the branches, and those of the fusion's own layers."""
    roles = {key.removeprefix("weights/"): value for key, value in golden.items() if key.startswith("weights/")}
    weights = {
        k.removeprefix(f"{name}."): v for k, v in roles.items() if k.split(".")[0] in (name, "mamba", "attention")
    }
    head = build_head(name, 48, 32, 6, dropout=0.0)
    head.load_state_dict(weights)
    return head


def assert_norm_close(actual, expected, tolerance=1e-5):
    assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("name", FUSIONS)
def test_golden_logits_loss_and_gradients(golden, name):
    mamba, attention = golden["mamba"].clone().requires_grad_(), golden["attention"].clone().requires_grad_()
    logits = golden_head(golden, name)(mamba, attention)
    loss = F.cross_entropy(logits, golden["labels"])
    loss.backward()
    assert_norm_close(logits, golden[f"{name}/logits"])
    assert_norm_close(loss, golden[f"{name}/loss"])
    assert_norm_close(mamba.grad, golden[f"{name}/grad_mamba"])
    assert_norm_close(attention.grad, golden[f"{name}/grad_attention"])


@torch.no_grad()
def test_golden_rows_and_plan(golden):
    head = golden_head(golden, "parrot")
    R_p, R_q = head.rows(golden["mamba"], golden["attention"])
    assert_norm_close(R_p, golden["R_p"])
    assert_norm_close(R_q, golden["R_q"])
    assert_norm_close(sinkhorn(cost_matrix(R_p, R_q, "euclidean"), 0.05, 50).plan, golden["plan"])


def test_default_settings_are_the_papers():
    settings = build_head("parrot", 8, 8, 2).settings
    assert (settings.epsilon, settings.iterations, settings.dropout, settings.cost) == (0.05, 50, 0.3, "euclidean")


@pytest.mark.parametrize("name", list(HEADS))
@pytest.mark.parametrize("dims", [(20, 33), (16, 16), (33, 20)])
def test_every_head_takes_any_pair_and_trains_every_parameter(name, dims):
    torch.manual_seed(0)
    head = build_head(name, *dims, 5)
    logits = head(torch.randn(6, dims[0]), torch.randn(6, dims[1]), row_keys(0, 0, torch.arange(6)))
    assert logits.shape == (6, 5)
    F.cross_entropy(logits, torch.arange(6) % 5).backward()
    silent = [key for key, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("name", ["fcn", "cnn"])
@pytest.mark.parametrize("branch", ["mamba", "attention"])
def test_a_baseline_reads_one_branch_only(name, branch):
    torch.manual_seed(0)
    head = build_head(name, 12, 16, 3, branch=branch).eval()
    inputs = {"mamba": torch.randn(4, 12), "attention": torch.randn(4, 16)}
    before = head(**inputs)
    for key in inputs:
        changed = head(**{**inputs, key: inputs[key] + 1})
        assert torch.equal(changed, before) == (key != branch)


def test_only_transport_couples_the_rows():
    torch.manual_seed(0)
    mamba, attention = torch.randn(6, 16), torch.randn(6, 16)
    for name in HEADS:
        head = build_head(name, 16, 16, 3).double().eval()
        whole, part = head(mamba.double(), attention.double()), head(mamba[:3].double(), attention[:3].double())
        coupled = not torch.allclose(whole[:3], part, rtol=1e-9)
        assert coupled == head.needs_reference == (name in ("parrot", "ot"))


def test_the_plan_carries_no_gradient():
    """With the plan a constant, the gradient is that of a fixed linear map of the rows."""
    torch.manual_seed(0)
    head = build_head("ot", 16, 16, 3).double().eval()
    mamba, attention = torch.randn(5, 16).double().requires_grad_(), torch.randn(5, 16).double().requires_grad_()
    grad = torch.autograd.grad(head(mamba, attention).square().sum(), mamba)[0]
    R_p, R_q = head.rows(mamba, attention)
    G = sinkhorn(cost_matrix(R_p.detach(), R_q.detach(), "euclidean"), 0.05, 50).plan
    features = torch.cat([5 * G.T @ R_p, R_q, 5 * G @ R_q, R_p], 1)
    by_hand = head.out(head.dense(features).relu())
    assert_norm_close(grad, torch.autograd.grad(by_hand.square().sum(), mamba)[0], 1e-12)


@pytest.mark.parametrize("kind", ["envelope", "unrolled"])
@pytest.mark.parametrize("cost", COSTS)
def test_with_a_gradient_through_the_plan_the_rows_get_all_of_theirs(kind, cost):
    """Finite differences see everything: the plan, its costs, and their maximum."""
    torch.manual_seed(0)
    head = build_head("ot", 8, 8, 3, plan_gradient=kind, cost=cost, iterations=300).double().eval()
    R_p, R_q = torch.randn(2, 5, ROW, dtype=torch.float64)
    direction = torch.randn(5, ROW, dtype=torch.float64)

    def value(R_p):
        return torch.cat(head._couple(R_p, R_q, None)).pow(3).sum()

    slope = (value(R_p + 1e-5 * direction) - value(R_p - 1e-5 * direction)) / 2e-5
    R_p.requires_grad_()
    assert (torch.autograd.grad(value(R_p), R_p)[0] * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_permuting_the_batch_permutes_the_logits():
    torch.manual_seed(0)
    head = build_head("parrot", 16, 16, 3).double().eval()
    mamba, attention, order = torch.randn(7, 16).double(), torch.randn(7, 16).double(), torch.randperm(7)
    torch.testing.assert_close(
        head(mamba, attention)[order], head(mamba[order], attention[order]), rtol=1e-9, atol=1e-12
    )


def test_autocast_leaves_transport_and_logits_in_float32():
    torch.manual_seed(0)
    head = build_head("parrot", 16, 16, 3).eval()
    mamba, attention = torch.randn(8, 16), torch.randn(8, 16)
    exact = head(mamba, attention)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(mamba, attention)
        assert head.rows(mamba, attention)[0].dtype == torch.float32
    assert logits.dtype == head.marginal_error.dtype == torch.float32
    assert head.marginal_error < 1e-4
    assert_norm_close(logits, exact, 0.03)


def test_transport_reports_its_marginal_error_outside_the_state():
    head = build_head("parrot", 16, 16, 3, iterations=1, epsilon=0.01).eval()
    assert head.marginal_error is None
    head(torch.randn(8, 16), torch.randn(8, 16))
    assert head.marginal_error > 0
    assert not any("marginal" in key for key in head.state_dict())


def test_no_rows_at_all_are_fine():
    """A rank of a small last batch may hold none."""
    for name in HEADS:
        logits = build_head(name, 16, 16, 3).eval()(torch.zeros(0, 16), torch.zeros(0, 16))
        assert logits.shape == (0, 3)


def test_embeddings_too_small_to_pool_twice_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        build_head("cnn", 3, 16, 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("parot", {}, "did you mean parrot"),
        ("xyz", {}, "hadamard"),
        ("parrot", {"epsilom": 0.1}, "did you mean epsilon"),
        ("parrot", {"epsilon": 0}, "fusion.epsilon"),
        ("parrot", {"iterations": 0}, "fusion.iterations"),
        ("parrot", {"dropout": 1.0}, "fusion.dropout"),
        ("parrot", {"cost": "eucledian"}, "one of euclidean"),
        ("parrot", {"transport_scope": "globl"}, "one of global"),
        ("parrot", {"plan_gradient": "envelop"}, "one of none, envelope"),
        ("parrot", {"over": "frame"}, "one of batch, frames"),
        ("cnn", {"branch": "atention"}, "one of mamba, attention"),
    ],
)
def test_a_users_mistake_is_named_with_the_way_out(name, settings, message):
    with pytest.raises(UserError, match=message):
        build_head(name, 16, 16, 2, **settings)


def test_pair_heads_are_told_apart_by_type():
    assert [name for name in HEADS if isinstance(build_head(name, 16, 16, 2), PairHead)] == list(FUSIONS)
