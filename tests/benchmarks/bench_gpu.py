"""`make bench-gpu`: both branches, the scan's kernels and the transport on one GPU, as a table in Markdown.

    make bench-gpu ARGS="--out tests/benchmarks/results/gpu.md"

Encoders have the published sizes, Audio-Mamba base and HuBERT base, and random weights, which take as long as trained
ones. Shares of the ceiling are of what bf16 matrix products of 8192 x 8192 reach in the same run; they count the
operations of matrix products, convolutions and attention only, so that a branch's scan lowers its share.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from parrot_dist.encoders import Encoder, load_encoder, scan
from parrot_dist.encoders.ssam import Mixer, Shape, SsamEncoder
from parrot_dist.errors import exits_cleanly
from parrot_dist.fusion import build_head, row_keys, sinkhorn
from tests.benchmarks.bench_scan import draw

ROWS, SAMPLES, CLASSES = 32, 3 * 16000, 6
SSAM_BASE = Shape(
    width=768, depth=12, inner=2304, state=24, dt_rank=48, taps=4, patch_frames=4, patch_mels=16, tokens=250
)
SCANS = {"mamba-ssm": scan._find_mamba_ssm, "Triton": scan._find_triton, "PyTorch": lambda: None}
EPSILON, ITERATIONS = 0.05, 50  # the paper's entropy, the default's iterations


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """The fastest of several runs, after three that compile and fill caches."""
    times = []
    for _ in range(3 + repeats):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times[3:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceiling(device: torch.device, size: int = 8192) -> float:
    """Operations a second of a matrix product in bf16."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ b, device)


def base_encoders() -> dict[str, Encoder]:
    """Both branches in their published sizes, by what they are."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    mamba = SsamEncoder(SSAM_BASE, "released", "random", "")
    for mixer in (module for module in mamba.modules() if isinstance(module, Mixer)):
        mixer.A_log.data = torch.arange(1.0, SSAM_BASE.state + 1).log().repeat(SSAM_BASE.inner, 1)
    with tempfile.TemporaryDirectory() as folder:
        HubertModel(HubertConfig()).save_pretrained(folder)
        Wav2Vec2FeatureExtractor().save_pretrained(folder)
        return {"Audio-Mamba base": mamba, "HuBERT base": load_encoder(f"hf:{folder}")}


def branches(encoders: dict[str, Encoder], waveforms: list[Tensor], device: torch.device, peak: float) -> Iterator[str]:
    """Utterances a second of each branch under bf16, forward where it is frozen and both ways where it is not."""
    yield "| branch | unfrozen | ms a batch | utterances/s | share of the ceiling |\n|---|---|---|---|---|"
    for name, encoder in encoders.items():
        encoder.to(device).train()
        for what in ("none", "last:2"):
            encoder.unfreeze(what)

            def step(encoder: Encoder = encoder, what: str = what) -> None:
                with torch.autocast(device.type, torch.bfloat16):
                    loss = encoder(waveforms).square().sum()
                if what != "none":
                    loss.backward()
                encoder.zero_grad(set_to_none=True)

            with FlopCounterMode(display=False) as counter:
                step()
            took = seconds(step, device)
            share = counter.get_total_flops() / took / peak
            yield f"| {name} | {what} | {1e3 * took:.2f} | {len(waveforms) / took:.0f} | {share:.0%} |"


def scans(inputs: list[Tensor], device: torch.device) -> Iterator[str]:
    """Time of each kernel of the scan, in float32 and with the inputs that bf16 autocast gives it."""
    yield "| scan | inputs | forward, ms | forward and backward, ms |\n|---|---|---|---|"
    for name, find in SCANS.items():
        try:
            kernel = find()
        except ImportError as error:
            yield f"| {name} | not measured: {error} | | |"
            continue
        for dtype in (torch.float32, torch.bfloat16):
            leaves = [x.to(device, dtype if x.ndim > 2 else x.dtype).requires_grad_() for x in inputs]

            def forward(leaves: list[Tensor] = leaves) -> Tensor:
                return scan.selective_scan(*leaves)

            def both(leaves: list[Tensor] = leaves) -> object:
                return torch.autograd.grad(scan.selective_scan(*leaves).sum(), leaves)

            with patch.object(scan, "_kernel", return_value=kernel):
                alone, whole = seconds(torch.inference_mode()(forward), device), seconds(both, device)
            yield f"| {name} | {dtype} | {1e3 * alone:.3f} | {1e3 * whole:.3f} |"


def transport(encoders: dict[str, Encoder], waveforms: list[Tensor], device: torch.device) -> Iterator[str]:
    """The solver beside a training step with frozen encoders: all of it, and from kept embeddings."""
    rows, labels = len(waveforms), torch.arange(len(waveforms), device=device) % CLASSES
    keys = row_keys(0, 0, torch.arange(rows)).to(device)
    mamba, attention = (encoder.dim for encoder in encoders.values())
    head = build_head("parrot", mamba, attention, CLASSES, epsilon=EPSILON, iterations=ITERATIONS).to(device)
    optimizer = torch.optim.Adam(head.parameters(), fused=True)
    kept = [torch.randn(rows, width, device=device) for width in (mamba, attention)]
    for encoder in encoders.values():
        encoder.unfreeze("none")

    def step(embed: Callable[[], list[Tensor]]) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = head(*embed(), keys, None)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    C = torch.rand(rows, rows, device=device)
    solver = seconds(lambda: sinkhorn.sinkhorn(C, EPSILON, ITERATIONS, bound=1.0), device)
    with patch.object(sinkhorn, "_fused", return_value=None):
        unfused = seconds(lambda: sinkhorn.sinkhorn(C, EPSILON, ITERATIONS, bound=1.0), device)
    yield "| transport | ms | the solver's share |\n|---|---|---|"
    yield f"| solver, {rows} rows, {ITERATIONS} iterations | {1e3 * solver:.3f} | |"
    yield f"| solver without its fused kernel | {1e3 * unfused:.3f} | |"
    for what, embed in (
        ("from audio", lambda: [encoder(waveforms) for encoder in encoders.values()]),
        ("from kept embeddings", lambda: kept),
    ):
        took = seconds(lambda embed=embed: step(embed), device)
        yield f"| frozen step {what} | {1e3 * took:.2f} | {solver / took:.1%} |"


def heading() -> str:
    """The device, the date, and the versions of what was measured."""
    found = []
    for package in ("torch", "triton", "mamba-ssm"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return f"# {torch.cuda.get_device_name()}, {date.today()}\n\n{', '.join(found)}; batches of {ROWS} clips of 3 s"


@exits_cleanly
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the table goes besides here")
    settings = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench-gpu: no CUDA device, so nothing was measured")
        return 0
    device, encoders = torch.device("cuda"), base_encoders()
    waveforms = list(0.1 * torch.randn(ROWS, SAMPLES, device=device))
    peak = ceiling(device)
    parts = [heading(), f"Matrix products reach {peak / 1e12:.0f} TFLOP/s."]
    for part in (
        branches(encoders, waveforms, device, peak),
        scans(draw(2 * ROWS, SSAM_BASE.tokens + 1, SSAM_BASE.inner, SSAM_BASE.state), device),
        transport(encoders, waveforms, device),
    ):
        parts.append("\n".join(part))
    table = "\n\n".join(parts) + "\n"
    print(table)
    if settings.out:
        settings.out.write_text(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
