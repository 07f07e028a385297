"""The settings for people, from the schema: `--help`, shell completion, and docs/configuration.md.

`python -m parrot_dist.manual > docs/configuration.md` writes the last of these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from omegaconf import MISSING

from parrot_dist.config import Config, schema_keys
from parrot_dist.schema import Setting, sections

HEAD = """\
# Every setting

<!-- Written by `python -m parrot_dist.manual > docs/configuration.md`; change parrot_dist/config.py instead. -->

A setting is given in a YAML file (`--config FILE`) or as a word `key=value`, which wins. `data.shards` and `output` may
also come from `PARROT_SHARDS` and `PARROT_OUTPUT`, and `PARROT_CONFIG` names the file, or an object on S3, where there
is no `--config`: on a cluster that sets the three, `python -m parrot_dist.train` needs no words. Unknown keys, wrong
types and values out of bounds are refused before anything starts.
"""

BASH = """\
# source <(python -m parrot_dist.train --completion bash)
_parrot_dist() {
    [[ " ${COMP_WORDS[*]} " == *" parrot_dist."@(train|crossval)" "* ]] || return
    local line=${COMP_LINE:0:COMP_POINT} choice values
    local typed=${line##* }
    if [[ $typed != *=* ]]; then
        compopt -o nospace
        mapfile -t COMPREPLY < <(compgen -S = -W "KEYS" -- "$typed")
        return
    fi
    for choice in CHOICES; do
        [[ ${choice%%=*} == "${typed%%=*}" ]] || continue
        values=${choice#*=}
        mapfile -t COMPREPLY < <(compgen -W "${values//,/ }" -- "${typed#*=}")
    done
}
complete -o default -F _parrot_dist python python3
"""


class Parser(argparse.ArgumentParser):
    """The command line of a program that takes settings; its help goes on with every one of them."""

    def __init__(self, program: str, description: str, takes_file: bool = True) -> None:
        super().__init__(prog=f"python -m parrot_dist.{program}", description=description)
        if takes_file:
            completes = "print a script that completes settings"
            self.add_argument("--config", metavar="FILE", help="YAML file with settings, see jobs/")
            self.add_argument("--completion", choices=("bash",), action=_Completion, help=completes)
        self.add_argument("words", nargs="*", metavar="key=value", help="settings that override the file's")

    def format_help(self) -> str:
        """The help, as wide as the terminal."""
        return f"{super().format_help()}\n{terminal()}"


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(completion(), end="")
        parser.exit()


def terminal() -> str:
    """Every setting, section by section, laid out by argparse as options are."""
    layout = partial(argparse.HelpFormatter, max_help_position=32)
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, formatter_class=layout)
    for section in sections(Config):
        group = parser.add_argument_group(section.name or "settings, given as key=value", section.meaning)
        for item in section.settings:
            group.add_argument(item.key, help=f"{item.about.meaning} ({_facts(item)})".replace("%", "%%"))
    return parser.format_help()


def _facts(item: Setting) -> str:
    default = "must be given" if item.default == MISSING else f"default {_written(item.default)}"
    return f"{_kind(item)}; {default}"


def markdown() -> str:
    """The page of all settings."""
    return "\n".join([HEAD, *_tables()])


def _tables() -> Iterator[str]:
    for section in sections(Config):
        title = f"`{section.name}`" if section.name else "At the top"
        yield f"## {title}\n\n{section.meaning}\n\n| key | value | default | meaning |\n|---|---|---|---|"
        for item in section.settings:
            default = "must be given" if item.default == MISSING else f"`{_written(item.default)}`"
            yield f"| `{item.key}` | {_kind(item)} | {default} | {item.about.meaning} |"
        yield ""


def _kind(item: Setting) -> str:
    """Type and bounds, for example "int, above 0"."""
    written = item.type.replace(" | None", " or null").replace("list[", "list of ").replace("dict[str, ", "map to ")
    return ", ".join(filter(None, (written.rstrip("]"), item.about.allowed)))


def _written(value: object) -> str:
    """A value as one writes it after `key=`."""
    return value if isinstance(value, str) and value else json.dumps(value)


def completion() -> str:
    """A bash script that completes keys, and values where there is a choice, after `python -m parrot_dist.train`."""
    chosen = [item for section in sections(Config) for item in section.settings if item.about.choices]
    values = " ".join(f"{item.key}={','.join(item.about.choices)}" for item in chosen)
    return BASH.replace("KEYS", " ".join(schema_keys())).replace("CHOICES", values)


if __name__ == "__main__":
    print(markdown(), end="")
