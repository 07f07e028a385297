"""Contract 6 on real processes: one global batch, 1, 2 or 4 gloo ranks, one result."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from parrot_dist.fusion import build_head, row_keys
from parrot_dist.fusion.gather import gather_rows, local_slice

ROWS, STEPS = 12, 50
# The last of each holds a rank without rows, as in the last batch of an epoch.
SIZES = {1: [[12]], 2: [[6, 6], [7, 5], [12, 0]], 4: [[3, 3, 3, 3], [5, 1, 4, 2], [0, 6, 0, 6]]}
HEADS = {
    "parrot": {"name": "parrot"},
    "ot": {"name": "ot"},
    "hadamard": {"name": "hadamard"},
    "envelope": {"name": "parrot", "plan_gradient": "envelope"},
    "unrolled": {"name": "ot", "plan_gradient": "unrolled"},
}
CASES = [(head, dtype) for dtype in (torch.float64, torch.float32) for head in HEADS]


def batch(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    mamba = torch.randn(ROWS, 24, generator=generator, dtype=torch.float64).to(dtype)
    attention = torch.randn(ROWS, 16, generator=generator, dtype=torch.float64).to(dtype)
    return mamba, attention, torch.randint(4, (ROWS,), generator=generator)


def replica(head, dtype, **settings):
    torch.manual_seed(0)
    head = build_head(mamba_dim=24, attention_dim=16, num_classes=4, **HEADS[head], **settings).to(dtype)
    return DistributedDataParallel(head) if dist.is_initialized() else head


def step(model, sizes, seed):
    """Backward of this rank's part of one global batch, as the trainer does it; the global loss."""
    mamba, attention, labels = batch(seed, next(model.parameters()).dtype)
    mine = local_slice(sizes)
    keys = row_keys(1, seed, torch.arange(ROWS))
    logits = model(mamba[mine], attention[mine], keys[mine], sizes)
    loss = F.cross_entropy(logits, labels[mine], reduction="sum") / ROWS
    # DDP takes the mean over ranks of what has to be a sum.
    (loss * len(sizes)).backward()
    total = loss.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def gradients(head, dtype, sizes, **settings):
    model = replica(head, dtype, **settings)
    loss = step(model, sizes, seed=0)
    named = getattr(model, "module", model).named_parameters()
    return {"loss": loss, **{key: parameter.grad for key, parameter in named}}


def losses(sizes):
    model = replica("parrot", torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = []
    for seed in range(STEPS):
        optimizer.zero_grad()
        history.append(float(step(model, sizes, seed % 5)))
        optimizer.step()
    return history


def gathered_gradient(sizes):
    """Rank r weighs the global rows by r + 1: what comes back to a row is the sum of all the weights."""
    mine, rank = local_slice(sizes), dist.get_rank()
    rows = torch.arange(24.0).reshape(12, 2)
    x = rows[mine].clone().requires_grad_()
    everything = gather_rows(x, sizes)
    ((rank + 1) * everything.square()).sum().backward()
    return torch.equal(everything, rows), torch.equal(x.grad, 2 * rows[mine] * sum(range(1, len(sizes) + 1)))


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    results = {
        "gradients": [[gradients(*case, sizes) for case in CASES] for sizes in SIZES[world]],
        "local": gradients("parrot", torch.float64, SIZES[world][0], transport_scope="local"),
        "losses": losses(SIZES[world][1]),
        "gathered": [gathered_gradient(sizes) for sizes in SIZES[world]],
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """What each rank of a real process group found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.get_context("forkserver").set_forkserver_preload(["torch"])
    mp.start_processes(work, (request.param, str(folder)), nprocs=request.param, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone():
    return [gradients(*case, SIZES[1][0]) for case in CASES]


def distance(found, expected):
    """The greatest relative error, norm-wise, over the loss and every parameter's gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[key] - expected[key]).norm() / expected[key].norm()) for key in expected)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{dtype}" for name, dtype in CASES])
def test_loss_and_gradients_do_not_know_the_world_size(ranks, alone, case):
    tolerance = 1e-9 if CASES[case][1] == torch.float64 else 1e-5
    for rank in ranks:
        for found in rank["gradients"]:
            assert distance(found[case], alone[case]) < tolerance


def test_fifty_steps_of_training_agree(ranks):
    torch.testing.assert_close(torch.tensor(ranks[0]["losses"]), torch.tensor(losses([ROWS])), rtol=1e-3, atol=0)


def test_a_local_plan_is_another_plan(ranks, alone):
    assert distance(ranks[0]["local"], alone[0]) > 1e-3


def test_gathered_rows_get_the_gradients_of_all_ranks(ranks):
    assert all(forward and backward for rank in ranks for forward, backward in rank["gathered"])


def test_without_a_process_group_rows_stay_as_they_are():
    x = torch.ones(3, 2)
    assert gather_rows(x, [3]) is x


@pytest.mark.parametrize("sizes", [[2], [3, 3], []])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes"):
        gather_rows(torch.ones(3, 2), sizes)


def test_sizes_of_one_process_change_nothing():
    torch.manual_seed(0)
    head = build_head("parrot", 24, 16, 4).eval()
    mamba, attention, _ = batch(0, torch.float32)
    assert torch.equal(head(mamba, attention), head(mamba, attention, sizes=[ROWS]))
