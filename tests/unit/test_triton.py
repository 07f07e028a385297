"""Triton's kernels without a GPU: what they compute, in the interpreter, and that the compiler takes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

INTERPRETED = Path(__file__).parents[1] / "interpreted"


def test_kernels_compute_in_the_interpreter_what_torch_does():
    """In a process of its own, since Triton looks at the variable when the kernels are imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(INTERPRETED)]
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"} | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture
def compile_for_hopper(monkeypatch, tmp_path):
    """A kernel's code, stage by stage, for a launch on aligned tensors, of float32 unless `types` says otherwise."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compile_kernel(kernel, constants, types, warps):
        signature, aligned = {}, {}
        for place, parameter in enumerate(kernel.params):
            name = parameter.name
            count = "i32" if parameter.annotation_type else types.get(name, "*fp32")
            signature[name] = "constexpr" if name in constants else count
            if signature[name].startswith("*") and not parameter.do_not_specialize_on_alignment:
                aligned[place,] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, aligned)
        options = {"num_warps": warps, "enable_fp_fusion": True}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm

    return compile_kernel


@pytest.mark.parametrize("half", ["*fp32", "*bf16"])
def test_the_scan_compiles_and_its_forward_pass_needs_no_other_thread(compile_for_hopper, half):
    from parrot_dist.encoders import triton_scan

    types = dict.fromkeys((*triton_scan.UNALIGNED, "b", "c"), half) | {"y": "*fp32", "dy": "*fp32"}
    constants = {"D": 768, "CHUNK": triton_scan.CHUNK, "BLOCK": triton_scan.BLOCK}
    assert "shfl" not in compile_for_hopper(triton_scan._forward, constants, types, 1)["ptx"]
    assert compile_for_hopper(triton_scan._backward, constants, types, 1)["cubin"]


@pytest.mark.parametrize(("type_", "side"), [("*fp32", 128), ("*fp64", 64)])
def test_the_transport_compiles(compile_for_hopper, type_, side):
    from parrot_dist.fusion import triton_sinkhorn

    types = dict.fromkeys(("plan", "a", "b", "log_u", "log_v"), type_)
    assert compile_for_hopper(triton_sinkhorn._scale, {"N": side, "M": side}, types, 16)["cubin"]
