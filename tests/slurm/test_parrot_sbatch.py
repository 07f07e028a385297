"""`sbatch slurm/parrot.sbatch` on a real Slurm: two nodes, and everything that Slurm does to a job."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.slurm.lab import Job, Lab
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(1200)
EPOCHS, STEPS = 6, 36  # long enough to be disturbed twice, also where a look at it takes seconds
FOLD = 1
RUNS = "s3://parrot/runs"
MATERIAL = f"""
    import json
    from tests.jobs import settings, write_material
    print(json.dumps(settings(write_material("s3://parrot/material"), "{RUNS}")))
"""
FINGERPRINTS = """
    import json, sys
    from tests.jobs import fingerprint
    print(json.dumps([fingerprint(url) for url in sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def words(lab: Lab) -> list[str]:
    """The words of a job on the lab's S3 server, but for its name."""
    return [*python(lab, MATERIAL), f"optim.epochs={EPOCHS}", "checkpoint.every_steps=2"]


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, words: list[str]) -> Job:
    """A job on one node that nothing happens to; submitted, not yet awaited."""
    fold = f"data.split.fold={FOLD}"
    # A list instead of the whole environment, which Slurm would apply to the job's steps as well.
    needed = [
        f"{name}={value}" for name, value in lab.env.items() if name.startswith(("AWS_", "PARROT_", "PATH", "PYTHON"))
    ]
    options = ("--nodelist=n1", "--cpus-per-task=2", f"--export={','.join(needed)}")
    return lab.submit(*words, fold, "name=undisturbed", "scale.num_workers=2", options=options)


@pytest.fixture(scope="module")
def disturbed(lab: Lab, words: list[str], undisturbed: Job) -> Job:
    """A task of an array beside it, on both nodes, in a container that only notes what it runs."""
    noting = container(lab, "noting", 'echo "$(hostname) $*" >> "$0.log"')
    options = ("--nodes=2", "--cpus-per-task=2", f"--array={FOLD}", noting)
    return lab.submit(*words, "name=disturbed", "scale.placement=SPREAD", "scale.cpus_per_worker=1", options=options)


def container(lab: Lab, name: str, script: str) -> str:
    """The option of `sbatch` for a "container" that runs `script` before each command."""
    file = lab.folder / name
    file.write_text(f'#!/bin/bash\n{script}\nexec "$@"\n')
    file.chmod(0o755)
    return f"--export=ALL,PARROT_CONTAINER={file}"


def python(lab: Lab, script: str, *arguments: str) -> list:
    """What a script on the login node prints in its last line, as JSON."""
    return json.loads(lab.run(sys.executable, "-c", dedent(script), *arguments).splitlines()[-1])


def scratch_of(job: Job) -> list[Path]:
    """The folders of a job's Ray nodes: the nodes of the lab have one /tmp."""
    return list(Path("/tmp").glob(f"ray-{job.number}-*"))


@pytest.mark.parametrize(
    ("word", "option", "said"),
    [
        ("optim.epoch=3", "--array=1", "did you mean optim.epochs?"),
        ("seed=1", "--array=7", "data.split.fold: must be below data.split.folds"),
        ("seed=1", "--export=ALL,PARROT_PROGRAM=trian", "PARROT_PROGRAM=trian: must be one of train, "),
    ],
)
def test_a_mistake_is_the_exit_code_of_the_job(lab: Lab, words: list[str], word: str, option: str, said: str) -> None:
    job = lab.submit(*words, word, options=(option,))
    assert job.wait_for_end() == ("FAILED", "2:0")
    assert said in job.output


def test_a_ray_node_that_does_not_start_fails_the_job_and_is_heard(lab: Lab, words: list[str]) -> None:
    job = lab.submit(*words, options=(container(lab, "broken", '[[ $* != *"ray start"* ]] || { echo full; exit 3; }'),))
    assert job.wait_for_end() == ("FAILED", "1:0")
    assert re.search(r"full\n(?s:.*)exit code 3\n(?s:.*)error: a Ray node has ended", job.output)


def test_a_job_that_is_stopped_before_it_has_begun_leaves_nothing(lab: Lab, words: list[str]) -> None:
    job = lab.submit(*words)
    job.wait_for(lambda: any(folder.name == "sockets" for one in scratch_of(job) for folder in one.glob("session_*/*")))
    job.scancel("--batch", "--signal=TERM")
    assert job.wait_for_end() == ("FAILED", "143:0")
    assert not scratch_of(job)


def test_a_job_on_one_node_listens_on_loopback_at_ports_from_its_number(undisturbed: Job, disturbed: Job) -> None:
    undisturbed.wait_for(lambda: f"epoch 1/{EPOCHS}  step" in undisturbed.output)
    assert disturbed.state == "RUNNING"
    listeners = undisturbed.listeners()
    assert any(address.endswith(f":{10000 + int(undisturbed.number) % 10000 * 2}") for address, _ in listeners)
    assert any(name == "ray::RayTrainWo" for _, name in listeners)
    assert {name for address, name in listeners if "127.0.0.1" not in address} <= {"srun"}


def test_a_job_near_its_time_limit_and_on_a_node_that_loses_power_goes_on_exactly(
    lab: Lab, undisturbed: Job, disturbed: Job
) -> None:
    disturbed.wait_for(lambda: f"epoch 1/{EPOCHS}  step" in disturbed.output)
    assert disturbed.nodes_of_workers() == ["n1", "n2"]  # though there is room for both on one
    disturbed.scancel("--batch", "--signal=USR1")  # what --signal=B:USR1@120 does
    disturbed.wait_for(lambda: disturbed.facts["Restarts"] == "1")
    assert re.search(r"stopped; the same command goes on from \S+/step-\d+\n", disturbed.output)
    disturbed.wait_for(lambda: f"epoch 2/{EPOCHS}  step" in disturbed.output.partition("going on from")[2])
    lab.crash("n2")
    disturbed.wait_for(lambda: disturbed.facts["Restarts"] == "2" and disturbed.state == "PENDING")
    lab.boot("n2")
    assert disturbed.wait_for_end() == ("COMPLETED", "0:0"), disturbed.output
    first, second = map(int, re.findall(r"going on from step (\d+)", disturbed.output))
    assert 0 < first <= second < STEPS
    assert undisturbed.wait_for_end() == ("COMPLETED", "0:0")
    one, other = python(lab, FINGERPRINTS, f"{RUNS}/undisturbed", f"{RUNS}/disturbed-fold{FOLD}")
    assert one == other
    assert one[0] == STEPS


def test_a_job_beside_another_ends_with_the_place_of_its_checkpoint(undisturbed: Job) -> None:
    assert undisturbed.wait_for_end() == ("COMPLETED", "0:0"), undisturbed.output
    assert (undisturbed.facts["NodeList"], undisturbed.facts["Restarts"]) == ("n1", "0")
    assert "starting on 2 workers" in undisturbed.output
    assert f"newest checkpoint: {RUNS}/undisturbed/checkpoints/step-{STEPS:08d}\n" in undisturbed.output
    assert not scratch_of(undisturbed)


def test_a_job_goes_on_exactly_when_the_node_of_its_head_and_its_driver_loses_power(
    lab: Lab, words: list[str], undisturbed: Job
) -> None:
    options = ("--nodes=2", "--cpus-per-task=2")
    apart = ("scale.placement=SPREAD", "scale.cpus_per_worker=1", f"data.split.fold={FOLD}")
    assert undisturbed.wait_for_end() == ("COMPLETED", "0:0")  # it is on that node too
    job = lab.submit(*words, *apart, "name=headless", options=options)
    job.wait_for(lambda: f"epoch 2/{EPOCHS}  step" in job.output)
    assert job.nodes_of_workers() == ["n1", "n2"]
    lab.crash("n1")
    job.wait_for(lambda: job.facts["Restarts"] == "1" and job.state == "PENDING")
    wait_until(lambda: not job.nodes_of_workers())  # the other worker does not outlive the job
    lab.boot("n1")
    assert job.wait_for_end() == ("COMPLETED", "0:0"), job.output
    assert re.search(r"going on from step \d+", job.output)
    one, other = python(lab, FINGERPRINTS, f"{RUNS}/undisturbed", f"{RUNS}/headless")
    assert one == other


def test_everything_runs_in_the_container(lab: Lab, disturbed: Job) -> None:
    disturbed.wait_for_end()
    contained = (lab.folder / "noting.log").read_text()
    for process in ("n1 .* ray start .*--head", "n2 .* ray start .*--address", "n1 python -m parrot_dist.train "):
        assert re.search(process, contained)
