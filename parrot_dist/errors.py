"""The one exception for mistakes that the person at the keyboard can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from signal import SIGINT, SIGPIPE


class UserError(Exception):
    """What is wrong, where, and what to do: shown as it stands, without a traceback, exit code 2."""


class Unreachable(UserError):  # noqa: N818
    """The object store does not answer: a wrong address before a run starts, an outage to be ridden out within it."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that somebody who typed `word` may have meant."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


def exits_cleanly(main: Callable[[], int]) -> Callable[[], int]:
    """Decorate an entry point: a `UserError` becomes one message on stderr and exit code 2, Ctrl-C exit code 130."""

    @wraps(main)
    def run() -> int:
        try:
            return main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # nobody reads on, as in `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + SIGPIPE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + SIGINT

    return run
