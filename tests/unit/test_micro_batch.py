"""Gradient caching: parts of a batch, one plan, the gradients of the undivided step; on 1, 2 and 4 gloo ranks."""

import weakref

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parrot_dist.encoders import Embedder, load_encoder
from parrot_dist.fusion import build_head, row_keys
from parrot_dist.fusion.gather import local_slice
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.training.micro_batch import embed_in_parts
from parrot_dist.training.model import ParrotModel

ROWS = 12
# The last of each holds a rank without rows.
SIZES = {1: [[12]], 2: [[7, 5], [12, 0]], 4: [[5, 1, 4, 2], [0, 6, 0, 6]]}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


class Toy(Embedder):
    """Mean over time of a small network, in the type of its parameters; knows what it was asked for."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, dim))
        self.calls, self.alive, self.most = [], weakref.WeakSet(), 0

    def forward(self, inputs):
        self.calls.append(len(inputs))
        hidden = [self.layers[1](self.layers[0](x[:, None])) for x in inputs]
        if hidden[0].requires_grad:
            self.alive.update(hidden)
        self.most = max(self.most, len(self.alive))
        return torch.stack([self.layers[2](x).mean(0) for x in hidden])

    def silence(self, device):
        return torch.zeros(5, dtype=next(self.parameters()).dtype)


def toy_model(micro_batch, dtype):
    torch.manual_seed(0)
    head = build_head("parrot", 24, 16, 4)
    return ParrotModel({"mamba": Toy(24), "attention": Toy(16)}, head, micro_batch).to(dtype)


def waveforms(dtype, samples=10):
    generator = torch.Generator().manual_seed(1)
    lengths = [samples * (row + 3) // 3 for row in range(ROWS)]
    return [torch.randn(length, generator=generator, dtype=torch.float64).to(dtype) for length in lengths]


def step(model, sizes, scale=1.0):
    """Loss of the global batch, and what the trained parameters got, as the loop does it."""
    dtype = next(model.parameters()).dtype
    network = DistributedDataParallel(model) if dist.is_initialized() else model
    mine, rows = local_slice(sizes), waveforms(dtype, model.samples)
    labels, keys = torch.arange(ROWS) % 4, row_keys(1, 7, torch.arange(ROWS))
    logits = network({"mamba": rows[mine], "attention": rows[mine]}, keys[mine], sizes)
    loss = F.cross_entropy(logits, labels[mine], reduction="sum") * len(sizes) / ROWS
    (loss * scale).backward()
    total = loss.detach() / len(sizes)
    if dist.is_initialized():
        dist.all_reduce(total)
    return {"loss": total} | {name: tensor.grad / scale for name, tensor in model.trained().items()}


def toy_step(micro_batch, sizes, dtype=torch.float64, **how):
    model = toy_model(micro_batch, dtype)
    model.samples = 10
    return step(model, sizes, **how)


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(
        [{dtype: toy_step(2, sizes, dtype) for dtype in TOLERANCE} for sizes in SIZES[world]], f"{folder}/{rank}"
    )
    dist.destroy_process_group()


def distance(found, expected):
    """The greatest relative error, norm-wise, over the loss and every parameter's gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


@pytest.mark.parametrize("world", [2, 4])
def test_parts_on_any_number_of_ranks_give_the_undivided_step(tmp_path, world):
    mp.get_context("forkserver").set_forkserver_preload(["torch"])
    mp.start_processes(work, (world, str(tmp_path)), nprocs=world, start_method="forkserver")
    for dtype, tolerance in TOLERANCE.items():
        whole = toy_step(0, [ROWS], dtype)
        for rank in range(world):
            for found in torch.load(tmp_path / str(rank)):
                assert distance(found[dtype], whole) < tolerance


@pytest.mark.parametrize("size", [1, 5, 11])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_parts_of_any_size_give_the_undivided_step(size, dtype):
    assert distance(toy_step(size, [ROWS], dtype), toy_step(0, [ROWS], dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("unfreeze", ["last:1", "all"])
def test_real_encoders_give_the_undivided_step(tmp_path, unfreeze):
    sources = write_random_encoders(str(tmp_path))

    def gradients(micro_batch):
        encoders = {branch: load_encoder(source) for branch, source in sources.items()}
        for encoder in encoders.values():
            encoder.unfreeze(unfreeze)
        torch.manual_seed(0)
        head = build_head("parrot", encoders["mamba"].dim, encoders["attention"].dim, 4)
        model = ParrotModel(encoders, head, micro_batch)
        model.samples = 2000
        return step(model, [ROWS])

    def but_for_zeros(found):
        """Attention is blind to what all keys share: but for rounding, their bias has no gradient."""
        return {name: tensor for name, tensor in found.items() if not name.endswith("k_proj.bias")}

    assert distance(but_for_zeros(gradients(5)), but_for_zeros(gradients(0))) < 1e-5


def test_a_scaled_loss_gives_scaled_gradients():
    assert distance(toy_step(5, [ROWS], scale=2.0**16), toy_step(0, [ROWS])) < 1e-9


class Matrix(Embedder):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Linear(200, 200, bias=False)

    def forward(self, inputs):
        return self.matrix(torch.stack(inputs))

    def silence(self, device):
        raise NotImplementedError


def test_autocast_sums_the_parts_in_the_type_of_the_parameters():
    """A sum of 64 parts in bf16 would be off by 1 % of itself; each part by itself is by 0.2 %."""
    torch.manual_seed(0)
    embedder, inputs, gradients = Matrix(), list(torch.randn(64, 200)), []
    for size in (0, 1):
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embed_in_parts(embedder, inputs, size)
        gradients += torch.autograd.grad(embeddings.float().square().sum(), embedder.matrix.weight)
    assert 0 < (gradients[1] - gradients[0]).norm() < 0.004 * gradients[0].norm()


def embed(model):
    rows = waveforms(torch.float64)
    return model.embed({"mamba": rows, "attention": rows})


def test_one_part_at_a_time_is_held_and_computed_again():
    model = toy_model(5, torch.float64)
    toy = model.encoders["mamba"]
    embeddings = embed(model)[0]
    assert toy.calls == [5, 5, 2]
    assert not toy.alive
    embeddings.sum().backward()
    assert toy.calls == [5, 5, 2, 2, 5, 5]
    assert toy.most == 5


@pytest.mark.parametrize("how", ["frozen", "no gradient", "no parts", "large parts"])
def test_what_needs_no_parts_is_computed_once(how):
    model = toy_model({"no parts": 0, "large parts": ROWS}.get(how, 5), torch.float64)
    model.requires_grad_(how != "frozen")
    with torch.set_grad_enabled(how != "no gradient"):
        embeddings = embed(model)[1]
    if embeddings.requires_grad:
        embeddings.sum().backward()
    assert model.encoders["attention"].calls == [ROWS]
