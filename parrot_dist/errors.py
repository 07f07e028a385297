"""The one exception for mistakes that the person at the keyboard can mend."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from signal import SIGINT, SIGPIPE

# Up to the last @ where it is a web address, for people forget to encode what is in their passwords; only up to a slash
# anywhere else, where an @ may be in a file's name.
USERINFO = re.compile(r"(?:(?<=http://)|(?<=https://))\S*@|(?<=://)[^/\s]*@")


def without_userinfo(text: str) -> str:
    """`text` without the user and the password of the URLs in it, as it may be shown and logged."""
    return USERINFO.sub("", text)


class UserError(Exception):
    """What is wrong, where, and what to do: shown as it stands, without a traceback, exit code 2.

    What libraries say, and so messages that quote it, may name servers together with a password, which is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_userinfo(message))


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
