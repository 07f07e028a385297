"""The settings of `shards.build`: their schema, their help, and the way from words to checked values."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from parrot_dist.configuration import absolute_place
from parrot_dist.errors import UserError, nearest
from parrot_dist.schema import Setting, sections, setting
from shards.corpora import READERS

NORMALISATIONS = ("peak", "none")


@dataclass
class Settings:
    """What can be said as key=value."""

    corpus: str = setting(MISSING, f"which corpus it is, or which layout: {', '.join(READERS)}")
    source: str = setting(MISSING, "folder or URL with the corpus as it is distributed")
    out: str = setting(MISSING, "folder or URL for the shards and the index")
    shard_mb: float = setting(
        4.0, "megabytes of a shard, nearly; small ones let a small corpus feed many workers", above=0
    )
    normalise: str = setting(
        "peak", "scale every clip to a peak of 1 (the paper's preparation), or not at all", choices=NORMALISATIONS
    )
    seed: int = setting(0, "of the order of speakers, and of each one's clips, in the shards", least=0)


def parse(words: list[str]) -> Settings:
    """The settings in `key=value` words; paths become absolute, so that a worker in another folder finds them too.

    Raises:
        UserError: lists every word that is no setting (with the nearest one), of a wrong type or value, or missing.
    """
    settings = OmegaConf.structured(Settings)
    known = [field.name for field in fields(Settings)]
    faults = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            near = nearest(key, known)
            faults.append(f"{word}: " + (f"did you mean {near}=...?" if near else f"settings are {', '.join(known)}"))
            continue
        try:
            OmegaConf.update(settings, key, value)
        except OmegaConfBaseException as error:
            faults.append(f"{word}: {str(error).splitlines()[0]}")
    faults += [f"{key}=... must be given" for key in sorted(OmegaConf.missing_keys(settings))]
    for item in _items():
        chosen = None if OmegaConf.is_missing(settings, item.key) else settings[item.key]
        if chosen is not None and not item.about.holds(chosen):
            faults.append(f"{item.key}={chosen}: must be {item.about.allowed}")
    if faults:
        raise UserError("the settings cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    parsed = cast(Settings, OmegaConf.to_object(settings))
    parsed.source, parsed.out = absolute_place(parsed.source), absolute_place(parsed.out)
    return parsed


def command_line(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of `key=value` words whose help has every setting with type, default and meaning."""
    parser = argparse.ArgumentParser(
        f"python -m {program}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="a setting")
    described = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    group = described.add_argument_group("settings")
    for item in _items():
        facts = ", ".join(filter(None, (item.type, item.about.allowed)))
        default = "must be given" if item.default == MISSING else f"default {item.default}"
        group.add_argument(item.key, help=f"{item.about.meaning} ({facts}; {default})")
    parser.epilog = described.format_help()
    return parser


def _items() -> list[Setting]:
    return [item for section in sections(Settings) for item in section.settings]
