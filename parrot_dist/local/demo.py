"""The whole way of the data on one machine: `python -m parrot_dist.local.demo [key=value ...]`.

Every step is a command that the README gives, run here with an S3 server and a Ray head of its own on loopback. What is
done is kept in `.demo`, so a second run goes on from where the first one came to.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from parrot_dist import configuration
from parrot_dist.errors import exits_cleanly
from parrot_dist.local.cluster import ray_head
from parrot_dist.local.process import exit_on_sigterm
from parrot_dist.local.s3 import s3_server
from parrot_dist.manual import Parser
from parrot_dist.reporting.progress import Follower
from parrot_dist.reporting.provenance import find_commit

FOLDER = Path(".demo")
JOB = "jobs/demo.yaml"
DESCRIPTION = (
    "Everything on this machine: an S3 server and a Ray cluster on loopback, a spoken corpus, shards, training, "
    f"evaluation, prediction. What is done is kept in {FOLDER}. The settings of the training are those of {JOB}, in "
    "float32 on a CPU that only emulates bf16."
)
CPUS = 4  # logical: the workers are small, and scale.num_workers=4 shall fit on a laptop too


@exits_cleanly
def main() -> int:
    """Run the demo; `key=value` words go to the training job."""
    words = Parser("local.demo", DESCRIPTION, takes_file=False).parse_args().words
    import torch  # seconds that `--help` need not wait for

    from parrot_dist.training.precision import emulated

    if emulated("bf16", torch.device("cpu")):
        words = ["optim.precision=float32", *words]  # before those of the person, who may know better
    settings = configuration.load(JOB, words)
    exit_on_sigterm()
    began = time.monotonic()
    with s3_server(FOLDER / "s3") as server:
        os.environ |= server.env
        _run("shards.speak", str(FOLDER / "spoken"))
        _run("shards.build", "corpus=spoken", f"source={FOLDER / 'spoken'}", f"out={settings.data.shards}")
        _run("parrot_dist.local.encoders", "s3://parrot/encoders")
        _say("Ray starts on loopback")
        with ray_head(FOLDER / "ray", server.env, num_cpus=CPUS) as head:
            command = ["python", "-m", "parrot_dist.train", "--config", JOB, *words]
            if commit := find_commit(Path().absolute()):  # the upload has no `.git`
                command = ["env", f"PARROT_COMMIT={commit.replace(', ', '-').replace(' ', '-')}", *command]
            _say(f"ray job submit --working-dir . -- {' '.join(command)}", f"dashboard: {head.dashboard}")
            with closing(Follower()) as follower:
                code = head.submit(command, Path(), Path("jobs/runtime_env.yaml"), show=follower.show)
        if code:
            return code
        _run("parrot_dist.evaluate", settings.run_url)
        clips = sorted((FOLDER / "spoken").rglob("*.wav"))[::400]
        _run("parrot_dist.predict", settings.run_url, *map(str, clips))
    _say(f"done in {time.monotonic() - began:.0f} s; open runs/{settings.name}/report.html")
    return 0


def _run(module: str, *arguments: str) -> None:
    """Run `python -m module`, shown as it would be typed; ends the demo with its exit code if that is not 0."""
    _say(f"python -m {module} {' '.join(arguments)}")
    code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if code:
        sys.exit(code)


def _say(*lines: str) -> None:
    print("\n" + "\n".join(f"» {line}" for line in lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
