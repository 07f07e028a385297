"""What a Slurm allocation says about a run: `python -m slurm.allocation [--config FILE] [key=value ...]`.

Prints the whole command line of `parrot_dist.train`, or of what PARROT_PROGRAM names, one word a line, so that a
mistake in it is found before any Ray process starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from parrot_dist import papertable, train
from parrot_dist.errors import UserError, exits_cleanly


def complete(words: list[str], environ: Mapping[str, str]) -> list[str]:
    """`words` with the settings that follow from the allocation: one worker a GPU, or a node without GPUs.

    The allocation's stand before the user's, which therefore win. In a job array each task is a fold, and a run of
    its own, named after the run that `words` describe.

    Raises:
        UserError: the configuration cannot be used, or its workers do not fit into the allocation.
    """
    nodes, cpus = int(environ["SLURM_JOB_NUM_NODES"]), int(environ["SLURM_CPUS_ON_NODE"])
    gpus = int(environ.get("SLURM_GPUS_ON_NODE") or 0)
    defaults = [f"scale.num_workers={nodes * (gpus or 1)}", f"scale.use_gpu={str(gpus > 0).lower()}"]
    fold = [f"data.split.fold={environ['SLURM_ARRAY_TASK_ID']}"] if "SLURM_ARRAY_TASK_ID" in environ else []
    workers = -(-train.parse([*defaults, *words, *fold]).scale.num_workers // nodes)  # on one node, rounded up
    defaults.append(f"scale.cpus_per_worker={max(1, cpus // workers)}")
    config = train.parse([*defaults, *words, *fold])
    if fold:
        fold.append(f"name={config.name}-fold{config.data.split.fold}")
    if workers * config.scale.cpus_per_worker > cpus or (config.scale.use_gpu and workers > gpus):
        raise UserError(
            f"scale.num_workers: {config.scale.num_workers} workers of {config.scale.cpus_per_worker} CPUs"
            f"{' and a GPU' if config.scale.use_gpu else ''} do not fit on {nodes} nodes of {cpus} CPUs and {gpus} GPUs"
        )
    return [*defaults, *words, *fold]


def complete_table(words: list[str], environ: Mapping[str, str]) -> list[str]:
    """The `words` of `parrot_dist.papertable`, whose trainings take a core each, or a GPU and its share of the cores.

    Raises:
        UserError: the configuration cannot be used.
    """
    cpus, gpus = int(environ["SLURM_CPUS_ON_NODE"]), int(environ.get("SLURM_GPUS_ON_NODE") or 0)
    share = cpus // gpus if gpus else 1
    completed = [f"scale.use_gpu={str(gpus > 0).lower()}", f"scale.cpus_per_worker={max(1, share)}", *words]
    papertable.parse(completed)
    return completed


PROGRAMS = {"train": complete, "crossval": complete, "papertable": complete_table}


@exits_cleanly
def main() -> int:
    """Print the words, one a line."""
    program = os.environ.get("PARROT_PROGRAM") or "train"
    if program not in PROGRAMS:
        raise UserError(f"PARROT_PROGRAM={program}: must be one of {', '.join(PROGRAMS)}")
    print("\n".join(PROGRAMS[program](sys.argv[1:], os.environ)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
