"""Train: `python -m parrot_dist.train [--config jobs/x.yaml] [key=value ...]`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parrot_dist import configuration
from parrot_dist.config import Config, Scale
from parrot_dist.errors import exits_cleanly
from parrot_dist.local.cluster import ray_head
from parrot_dist.local.process import interrupted_by_sigterm
from parrot_dist.manual import Parser
from parrot_dist.reporting.view import JsonLines, Text

DESCRIPTION = (
    "Train PARROT on the cluster that RAY_ADDRESS names, or on a local one. The same command again goes on from the "
    "newest checkpoint."
)


@exits_cleanly
def main() -> int:
    """Parse the command line, run the job, return its exit code."""
    args = command_line().parse_intermixed_args(sys.argv[1:])
    settings = configuration.load(args.config, args.words)
    view = JsonLines() if args.json else Text(settings.optim.epochs, quiet=args.quiet)
    from parrot_dist.training.lease import hold  # seconds of imports that a mistyped setting need not wait for
    from parrot_dist.training.prepare import check_stores, prepare

    check_stores(settings)
    # SIGTERM, too, shall let the next driver in at once.
    with interrupted_by_sigterm(), hold(settings.run_url, lambda text: view.show("message", text=text)) as lease:
        if not prepare(settings, view):
            return 0
        with cluster(settings.scale):
            from parrot_dist.training.launch import launch  # imports Ray, which reads its environment when imported

            return launch(settings, view, lease)


def command_line() -> Parser:
    """What `train` takes."""
    parser = Parser("train", DESCRIPTION)
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--quiet", action="store_true", help="show only warnings, errors and where the checkpoints are")
    style.add_argument("--json", action="store_true", help="show what happens as JSON, one object a line")
    return parser


def parse(arguments: list[str]) -> Config:
    """The configuration that a command line stands for.

    Raises:
        UserError: see `configuration.load`.
    """
    args = command_line().parse_intermixed_args(arguments)
    return configuration.load(args.config, args.words)


@contextmanager
def cluster(scale: Scale) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or else a local one of our own that lasts as long as the run."""
    if "RAY_ADDRESS" in os.environ:
        yield
        return
    # Logical CPUs: on a laptop workers share the cores, and Ray must not wait for more of them.
    cpus = max(os.cpu_count() or 1, scale.num_workers * scale.cpus_per_worker)
    with tempfile.TemporaryDirectory(prefix="parrot-") as folder, ray_head(Path(folder), {}, cpus) as head:
        os.environ |= head.env
        yield


if __name__ == "__main__":
    sys.exit(main())
