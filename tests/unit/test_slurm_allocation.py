"""The words that a Slurm allocation adds to a command line, and the ports that a job takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from parrot_dist import papertable
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.train import parse
from slurm.allocation import complete, complete_table

REPOSITORY = Path(__file__).parents[2]
JOB = [
    "name=run",
    "output=out",
    "data.shards=corpus",
    "data.classes=[anger,joy]",
    "encoders.mamba.source=ssam:a",
    "encoders.attention.source=hf:b",
]


def allocation(nodes: int, cpus: int, gpus: int = 0, task: int | None = None) -> dict[str, str]:
    """The environment of a job; `cpus` and `gpus` of each node."""
    environ = {"SLURM_JOB_NUM_NODES": str(nodes), "SLURM_CPUS_ON_NODE": str(cpus)}
    environ |= {"SLURM_GPUS_ON_NODE": str(gpus)} if gpus else {}
    return environ | ({} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)})


def job(words: list[str], environ: dict[str, str]) -> Config:
    """What is trained in a Slurm job with this environment."""
    return parse(complete(words, environ))


@pytest.mark.parametrize(
    ("environ", "words", "workers", "cpus", "gpu"),
    [
        (allocation(2, 8), [], 2, 8, False),
        (allocation(2, 32, gpus=4), [], 8, 8, True),
        (allocation(1, 2, gpus=4), ["scale.num_workers=2"], 2, 1, True),
        (allocation(2, 8), ["scale.num_workers=3"], 3, 4, False),
        (allocation(2, 8, gpus=1), ["scale.use_gpu=false", "scale.cpus_per_worker=2"], 2, 2, False),
    ],
)
def test_workers_fill_the_allocation_unless_the_user_says_otherwise(
    environ: dict[str, str], words: list[str], workers: int, cpus: int, gpu: bool
) -> None:
    scale = job([*JOB, *words], environ).scale
    assert (scale.num_workers, scale.cpus_per_worker, scale.use_gpu) == (workers, cpus, gpu)


def test_words_may_stand_on_both_sides_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("seed: 1\noptim: {epochs: 3}\n")
    config = job(["seed=2", "--config", str(file), *JOB], allocation(1, 4))
    assert (config.seed, config.optim.epochs, config.scale.num_workers) == (2, 3, 1)


def test_every_task_of_an_array_is_a_fold_and_a_run_of_its_own() -> None:
    configs = [job(JOB, allocation(1, 4, task=task)) for task in range(5)]
    assert [config.data.split.fold for config in configs] == list(range(5))
    assert len({config.run_url for config in configs}) == 5
    with pytest.raises(UserError, match=r"data\.split\.fold"):
        complete(JOB, allocation(1, 4, task=5))


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (allocation(2, 4), ["scale.num_workers=16"]),
        (allocation(2, 4), ["scale.cpus_per_worker=8"]),
        (allocation(2, 16, gpus=2), ["scale.num_workers=8"]),
    ],
)
def test_workers_that_can_never_start_are_a_users_mistake(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UserError, match="do not fit"):
        complete([*JOB, *words], environ)


def test_jobs_with_near_numbers_share_no_port() -> None:
    script = ". slurm/parrot.sbatch; for job in {4194000..4203999}; do first_port $job; done"
    lines = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, check=True, capture_output=True).stdout.split()
    first = [int(line) for line in lines]
    ports = {port for one in first for port in (one, one + 1)}
    assert len(ports) == 2 * len(first) == 20000
    assert min(ports) > 1024
    assert max(ports) < 32768  # where the ports begin that Linux hands out by itself


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = ["slurm/parrot.sbatch", "tests/slurm/slurmlab", "k8s/lock.sh", ".ci/run"]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    ended = subprocess.run([shellcheck, *scripts], cwd=REPOSITORY, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("file", ["slurm/parrot.sbatch", "slurm/README.md", "README.md", "docs/researcher.md"])
def test_allocations_that_are_shown_as_examples_can_be_trained_on(file: str) -> None:
    lines = [line for line in (REPOSITORY / file).read_text().splitlines() if "PARROT_PROGRAM" not in line]
    examples = re.findall(r"sbatch (.*)slurm/parrot\.sbatch", "\n".join(lines))
    assert any("--nodes" in options for options in examples)
    for options in examples:
        asked = {name: int(number) for name, number in re.findall(r"--([a-z-]+)=(\d+)", options)}
        gpus = asked.get("gpus-per-node", 0)
        job(JOB, allocation(asked.get("nodes", 1), asked.get("cpus-per-task", max(1, gpus)), gpus))


def test_a_step_gets_the_environment_of_its_job_whatever_the_job_got_of_its_submitters() -> None:
    assert re.search(r"\bsrun --export=ALL ", (REPOSITORY / "slurm" / "parrot.sbatch").read_text())


def test_only_own_processes_are_ended() -> None:
    code = re.sub(r"#.*", "", (REPOSITORY / "slurm" / "parrot.sbatch").read_text())
    assert not re.search(r"ray stop|symmetric-run|pkill|killall", code)


@pytest.mark.parametrize(
    ("environ", "words", "cpus", "gpu"),
    [
        (allocation(2, 8), [], 1, False),
        (allocation(2, 32, gpus=4), [], 8, True),
        (allocation(2, 32, gpus=4), ["scale.use_gpu=false", "scale.cpus_per_worker=2"], 2, False),
    ],
)
def test_the_trainings_of_a_table_take_a_core_or_a_gpu(
    environ: dict[str, str], words: list[str], cpus: int, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PARROT_CORPORA", "PARROT_ENCODERS", "PARROT_OUTPUT"):
        monkeypatch.setenv(variable, "/somewhere")
    files = [str(file) for file in sorted((REPOSITORY / "jobs" / "paper").glob("*.yaml"))]
    for experiment in papertable.parse(complete_table(["--config", *files, *words], environ)):
        scale = experiment.config.scale
        assert (scale.cpus_per_worker, scale.use_gpu) == (cpus, gpu)
