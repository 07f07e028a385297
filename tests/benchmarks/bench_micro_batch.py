"""Memory and time of a training step of small encoders, all of whose blocks are trained, by `optim.micro_batch`.

    python tests/benchmarks/bench_micro_batch.py

Memory is by how much a step raises the peak of its process.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time

import torch

from parrot_dist.encoders import load_encoder
from parrot_dist.fusion import build_head
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.training.model import ParrotModel

ROWS, SECONDS = 32, 3.0


def measure(sources: dict[str, str], micro_batch: int) -> tuple[float, float]:
    """Seconds of a step, and by how much it raised the process's peak, in MiB."""
    torch.set_num_threads(1)
    encoders = {branch: load_encoder(source) for branch, source in sources.items()}
    for encoder in encoders.values():
        encoder.unfreeze("all")
    head = build_head("parrot", encoders["mamba"].dim, encoders["attention"].dim, 6)
    model = ParrotModel(encoders, head, micro_batch)
    waveforms: list[torch.Tensor] = list(torch.randn(ROWS, int(SECONDS * 16000)))

    def step(rows: int) -> None:
        model({branch: list(waveforms[:rows]) for branch in encoders}).sum().backward()

    step(1)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    step(ROWS)
    seconds = time.perf_counter() - began
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sources = write_random_encoders(folder)
        print(f"{ROWS} utterances of {SECONDS:g} s\nmicro_batch   step (s)   memory (MiB)")
        for micro_batch in (0, 16, 8, 4, 2):
            # A process of its own: a peak does not go down again.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, memory = pool.apply(measure, (sources, micro_batch))
            print(f"{micro_batch:11d} {seconds:10.2f} {memory:14.0f}")


if __name__ == "__main__":
    main()
