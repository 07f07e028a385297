"""The paper's tables: `python -m parrot_dist.papertable --config jobs/paper/*.yaml [key=value ...]`."""

from __future__ import annotations

import sys

from parrot_dist import grid
from parrot_dist.errors import exits_cleanly
from parrot_dist.grid import Experiment
from parrot_dist.manual import Parser
from parrot_dist.train import cluster


@exits_cleanly
def main() -> int:
    """Parse the command line, fill the table, show it beside the published figures."""
    experiments = parse(sys.argv[1:])
    with cluster(experiments[0].config.scale):
        from parrot_dist.training.papertable import fill_table  # seconds of imports that a mistake need not wait for

        fill_table(experiments)
    return 0


def parse(arguments: list[str]) -> list[Experiment]:
    """The experiments that a command line stands for.

    Raises:
        UserError: see `grid.load`.
    """
    parser = Parser(
        "papertable",
        "Every encoder embeds every corpus once; then all heads are trained on the embeddings, fold by fold, as many "
        "at once as the cluster has room for. The result stands beside the published figures. The same command again "
        "goes on with what is not done. The settings are those of a run, but for grid.encoders and grid.heads in the "
        "place of encoders.* and fusion.name: see jobs/paper/.",
        takes_file=False,
    )
    parser.add_argument(
        "--config",
        nargs="+",
        required=True,
        metavar="FILE",
        help="YAML files, one for each corpus, and one with the settings that all of them share",
    )
    args = parser.parse_intermixed_args(arguments)
    words = [*args.words, *(word for word in args.config if "=" in word)]  # --config takes what follows it
    return grid.load([file for file in args.config if "=" not in file], words)


if __name__ == "__main__":
    sys.exit(main())
