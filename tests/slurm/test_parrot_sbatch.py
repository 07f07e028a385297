"""`sbatch slurm/parrot.sbatch` on a real Slurm: two nodes, and everything that Slurm does to a job."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.slurm.lab import GOING_ON, Job, Lab
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(600)
EPOCHS, STEPS = 4, 24  # long enough to be disturbed


@pytest.fixture(scope="module")
def words(lab: Lab) -> list[str]:
    """The words of a job on the lab's S3 server, but for its name."""
    script = """
        import json
        from tests.jobs import settings, write_material
        print(json.dumps(settings(write_material("s3://parrot/material"), "s3://parrot/runs")))
    """
    return [*python(lab, script), f"optim.epochs={EPOCHS}", "checkpoint.every_steps=2", "scale.placement=SPREAD"]


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, words: list[str]) -> Job:
    """A job that nothing happens to, in a container that only notes what it runs; submitted, not yet awaited."""
    container = lab.folder / "container"
    container.write_text('#!/bin/bash\necho "$(hostname) $*" >> "$0.log"\nexec "$@"\n')
    container.chmod(0o755)
    return lab.submit(*words, "name=undisturbed", options=(f"--export=ALL,PARROT_CONTAINER={container}",))


def python(lab: Lab, script: str, *arguments: str) -> list:
    """What a script on the login node prints in its last line, as JSON."""
    return json.loads(lab.run(sys.executable, "-c", dedent(script), *arguments).splitlines()[-1])


def fingerprint(lab: Lab, name: str) -> list:
    """Step and digest of the parameters of a run's newest checkpoint."""
    script = """
        import json, sys
        from tests.jobs import fingerprint
        print(json.dumps(fingerprint(sys.argv[1])))
    """
    return python(lab, script, f"s3://parrot/runs/{name}")


def wait_for(job: Job, condition: Callable[[], bool]) -> None:
    """Wait for something to be said of a job that has not ended."""
    wait_until(lambda: condition() or job.state not in GOING_ON, timeout_s=500)
    assert condition(), job.output


def wait_for_end(job: Job) -> None:
    """Wait for a job to end, and well."""
    wait_until(lambda: job.state not in GOING_ON, timeout_s=500)
    assert (job.state, job.facts["ExitCode"]) == ("COMPLETED", "0:0"), job.output


def test_a_mistake_in_the_settings_is_the_exit_code_of_the_job(lab: Lab, words: list[str]) -> None:
    job = lab.submit(*words, "name=mistaken", "optim.epoch=3")
    wait_until(lambda: job.state not in GOING_ON)
    assert (job.state, job.facts["ExitCode"]) == ("FAILED", "2:0")
    assert "did you mean optim.epochs?" in job.output
    job = lab.submit(*words, "name=mistaken", options=("--array=7",))
    wait_until(lambda: job.state not in GOING_ON)
    assert (job.state, job.facts["ExitCode"]) == ("FAILED", "2:0")
    assert "data.split.fold: must be below data.split.folds" in job.output


def test_a_job_near_its_time_limit_saves_and_goes_on_exactly_and_leaves_its_neighbour_alone(
    lab: Lab, words: list[str], undisturbed: Job
) -> None:
    job = lab.submit(*words, "name=signalled")
    wait_for(job, lambda: f"epoch 1/{EPOCHS}  step" in job.output)
    assert undisturbed.facts["NodeList"] == job.facts["NodeList"] == "n[1-2]"
    assert undisturbed.state == "RUNNING"
    job.scancel("--batch", "--signal=USR1")  # what --signal=B:USR1@120 does
    wait_for(job, lambda: job.facts["Restarts"] == "1")
    assert re.search(r"stopped; the same command goes on from \S+/step-\d+\n", job.output)
    wait_for_end(job)
    assert re.search(r"going on from step [1-9]", job.output)
    wait_for_end(undisturbed)
    assert undisturbed.facts["Restarts"] == "0"
    assert fingerprint(lab, "signalled") == fingerprint(lab, "undisturbed")


def test_a_job_ends_with_the_place_of_its_checkpoint(lab: Lab, undisturbed: Job) -> None:
    wait_for_end(undisturbed)
    assert "starting on 2 workers" in undisturbed.output
    assert f"newest checkpoint: s3://parrot/runs/undisturbed/checkpoints/step-{STEPS:08d}\n" in undisturbed.output
    assert not list(Path("/tmp").glob(f"ray-{undisturbed.number}-*"))
    contained = (lab.folder / "container.log").read_text()
    for process in ("n1 .* ray start .*--head", "n2 .* ray start .*--address", "n1 python -m parrot_dist.train "):
        assert re.search(process, contained)


def test_a_job_whose_node_loses_power_in_mid_epoch_goes_on_exactly(
    lab: Lab, words: list[str], undisturbed: Job
) -> None:
    job = lab.submit(*words, "name=cut")
    wait_for(job, lambda: f"epoch 2/{EPOCHS}  step" in job.output)
    lab.crash("n2")
    wait_for(job, lambda: job.facts["Restarts"] == "1" and job.state == "PENDING")
    lab.boot("n2")
    wait_for_end(job)
    assert re.search(r"going on from step [1-9]", job.output)
    wait_for_end(undisturbed)
    assert fingerprint(lab, "cut") == fingerprint(lab, "undisturbed")
