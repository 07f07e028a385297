"""Cross-validate: `python -m parrot_dist.crossval [--config jobs/x.yaml] [key=value ...]`."""

from __future__ import annotations

import sys

from parrot_dist import configuration
from parrot_dist.errors import exits_cleanly
from parrot_dist.manual import Parser
from parrot_dist.train import cluster


@exits_cleanly
def main() -> int:
    """Parse the command line, train and test every fold, show and write down what they give together."""
    arguments = sys.argv[1:]
    parser = Parser(
        "crossval",
        "Train a run for each fold (data.split), as many at once as the cluster has room for, and test each on what it "
        "has not heard. The same command again goes on with what is not finished.",
    )
    args = parser.parse_intermixed_args(arguments)
    settings = configuration.load(args.config, args.words)
    with cluster(settings.scale):
        from parrot_dist.training.folds import cross_validate

        return cross_validate(settings, arguments)


if __name__ == "__main__":
    sys.exit(main())
