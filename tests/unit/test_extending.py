"""docs/extending.md does what it says: its files, installed as a package, build shards, train, export and predict."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import save_file

from tests.corpus import tone
from tests.jobs import Material, settings
from tests.plugins import install

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FILE = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAM = """
import sys
from parrot_dist import Predictor
from parrot_dist.encoders import load_encoder
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.training.export import write_export
from shards import build
from tests.corpus import tone
from tests.jobs import Material, settings, train_here
from tests.prefix import check_prefix
import torch

folder = sys.argv[1]
sys.argv[1:] = ["corpus=studio", f"source={folder}/wav", f"out={folder}/shards"]
assert build.main() == 0
encoders = write_random_encoders(f"{folder}/encoders") | {"mamba": f"frames:{folder}/frames"}
sounds = [torch.from_numpy(tone(200, seconds)) for seconds in (0.3, 0.9, 0.5)]
for boundary in ("none", "last:1", "last:2"):
    check_prefix(load_encoder(encoders["mamba"]), sounds, boundary)
words = ["fusion.name=gated", "optim.epochs=1", "encoders.attention.unfreeze=none"]
run = train_here(settings(Material(f"{folder}/shards", encoders), f"{folder}/runs", *words))
write_export(run, f"{folder}/export")
clip = tone(220, 0.5)
one, other = (Predictor.load(place).predict(clip) for place in (run, f"{folder}/export"))
assert one.tobytes() == other.tobytes()
print("all of it works")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `sys.path` with the page's package."""
    folder = tmp_path_factory.mktemp("site")
    files = dict(FILE.findall(PAGE.read_text()))
    project = tomllib.loads(files.pop("pyproject.toml"))
    assert sorted(files) == sorted(f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"])
    install(folder, project["project"]["name"], files, project["project"]["entry-points"])
    return folder


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{PAGE.parents[1]}"}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)


def test_the_pages_files_work_from_shards_to_predictions(site: Path, tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    for speaker in ("ada", "bo", "cy", "di", "eve", "flo", "gus", "hal"):
        for take in range(8):
            name = f"{speaker}_{take}_{'AJ'[take % 2]}.wav"
            soundfile.write(tmp_path / "wav" / name, tone(100 + 20 * take, 0.3, take), 16000)
    (tmp_path / "frames").mkdir()
    shapes = {"project.weight": (16, 80), "project.bias": (16,)}
    shapes |= {f"layers.{i}.{name}": shape for i in range(3) for name, shape in (("weight", (16, 16)), ("bias", (16,)))}
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "frames" / "model.safetensors")
    done = run(site, "-c", PROGRAM, str(tmp_path))
    assert "all of it works" in done.stdout, done.stderr
    assert "64 clips" in done.stdout


def test_help_and_the_checks_of_settings_know_the_names(site: Path) -> None:
    job = settings(Material("corpus", {"mamba": "frames:a", "attention": "hf:b"}), "out", "fusion.name=gate")
    done = run(site, "-m", "parrot_dist.train", *job)
    assert done.returncode == 2
    assert "fusion.name: " in done.stderr
    assert "gated" in done.stderr
    assert "gated" in run(site, "-m", "parrot_dist.train", "--help").stdout
