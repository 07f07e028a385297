"""The one way from files, words and environment to a checked configuration, and back to text.

Everything that can be known to be wrong without touching the network is found here, all at once.
"""

from __future__ import annotations

import os
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from parrot_dist.config import Branch, Config, Encoders, free_to_change, schema_keys
from parrot_dist.contradictions import contradictions
from parrot_dist.errors import UserError, nearest
from parrot_dist.schema import sections

ENVIRONMENT = {"data.shards": "PARROT_SHARDS", "output": "PARROT_OUTPUT"}


def load(file: str | None, words: list[str]) -> Config:
    """The configuration of `file` (YAML), or of the one that PARROT_CONFIG names, overridden by `key=value` words,
    completed from the environment.

    Raises:
        UserError: lists every unknown key with its nearest right name, every wrong type and every contradiction.
    """
    file = file or os.environ.get("PARROT_CONFIG")
    layers = [read_yaml(file)] if file else []
    return complete([*layers, *map(parse_word, words)])


def complete(layers: list[DictConfig]) -> Config:
    """The configuration of trees of settings, each overriding those before it, completed from the environment.

    Raises:
        UserError: as `load`.
    """
    defaults = OmegaConf.create({})
    for key, variable in ENVIRONMENT.items():
        if variable in os.environ:
            OmegaConf.update(defaults, key, os.environ[variable])
    return _absolute(_resolve([defaults, *layers]))


def loads(text: str) -> Config:
    """The configuration that `dumps` wrote."""
    return _resolve([OmegaConf.create(text)])


def dumps(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flat(config: Config) -> dict[str, Any]:
    """The value of every setting by its dotted name."""
    return {key: attrgetter(key)(config) for key in schema_keys()}


def differences(old: Config, new: Config) -> list[str]:
    """The settings in which `new` is not a continuation of `old`, as `key: old -> new`."""
    before, after = flat(old), flat(new)
    return [
        f"{key}: {before[key]} -> {after[key]}"
        for key in sorted(before)
        if before[key] != after[key] and not free_to_change(key)
    ]


def _absolute(config: Config) -> Config:
    """`config` with its local places made absolute: Ray runs drivers and workers in folders of their own."""
    data = config.data
    data = replace(
        data,
        shards=absolute_place(data.shards),
        cache=data.cache and absolute_place(data.cache),
        node_cache=data.node_cache and absolute_place(data.node_cache),
    )
    encoders = Encoders(*(absolute(branch) for _, branch in config.encoders.named()))
    return replace(config, output=absolute_place(config.output), data=data, encoders=encoders)


def absolute_place(url: str) -> str:
    """A path as an absolute one. What begins with a name and a colon is for the store to understand, or to refuse."""
    return url if ":" in url.partition("/")[0] else str(Path(url).expanduser().absolute())


def absolute(branch: Branch) -> Branch:
    """`branch` with the place of its encoder made absolute, if it is a local one."""
    family, _, place = branch.source.partition(":")
    local = place and Path(place).expanduser().exists()  # a name that is nothing here may be a Hub id
    return replace(branch, source=f"{family}:{absolute_place(place)}") if local else branch


def read_yaml(file: str) -> DictConfig:
    """The settings in a file, or an object on storage, as they stand.

    Raises:
        UserError: it is not there, or not YAML with settings in it.
    """
    if "://" not in file and not Path(file).is_file():
        raise UserError(f"{file}: there is no such configuration file")
    try:
        content = _parse(Path(file).read_text("utf-8") if "://" not in file else _fetch(file))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: not readable as YAML: {error}") from error
    if not isinstance(content, DictConfig):
        what = "a list" if isinstance(content, list) else repr(content)
        raise UserError(f"{file}: holds {what}; settings are written as key: value")
    return content


def _fetch(url: str) -> str:
    from parrot_dist import storage  # its libraries take half a second, which a mistyped setting need not wait for

    return storage.read_bytes(url).decode()


def parse_word(word: str) -> DictConfig:
    """The setting in a `key=value` word; the value is YAML, except that text stays what it is.

    Raises:
        UserError: it is not of that form.
    """
    key, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"{word}: settings are given as key=value")
    try:
        if key not in _TEXTS and not key.startswith(_INTO_TEXTS):
            return OmegaConf.from_dotlist([word])
        setting = OmegaConf.create({})
        text = _TEXTS.get(key) == "str" and value.strip() not in ("null", "~")  # which are no text and will be refused
        OmegaConf.update(setting, key, _unquoted(value.strip()) if text else yaml.load(value, _Texts))
        return setting
    except Exception as error:
        raise UserError(f"{word}: {error}") from error


def _parse(text: str) -> Any:
    """The tree in YAML, with texts where the schema wants some."""
    texts = yaml.load(text, _Texts)
    if not isinstance(texts, dict):
        return OmegaConf.create({}) if texts is None else texts
    tree = OmegaConf.create(text)
    for key, value in _leaves(texts).items():
        if key in _TEXTS:
            OmegaConf.update(tree, key, value, merge=False)
    return tree


class _Texts(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which 2025_06_01, 1e5, 12:30 and no are the text that they are, and not numbers or a truth value."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _unquoted(text: str) -> str:
    """`text` without quotes around all of it, which may be there out of habit: YAML reads no number in them."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _resolve(layers: list[Any]) -> Config:
    """Merge untyped layers, then lay them leaf by leaf over the schema, so that every fault is found."""
    try:
        merged = OmegaConf.merge(*layers)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"the configuration cannot be used: {str(error).splitlines()[0]}") from error
    schema = OmegaConf.structured(Config)
    faults = _lay(_spelt_out(_leaves(_plain(merged))), schema)
    try:
        missing = sorted(OmegaConf.missing_keys(schema))
        named = [fault.partition(":")[0] for fault in faults]
        faults += [f"{key}: must be given{_or_variable(key)}" for key in missing if key not in named]
        if not missing:  # what is mistyped has its default here, so that the rest is checked all the same
            config = cast(Config, OmegaConf.to_object(schema))
            faults += contradictions(config)
    except OmegaConfBaseException as error:
        faults.append(str(error).splitlines()[0])
    if faults:
        raise UserError("the configuration cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    return config


def _lay(leaves: dict[str, Any], schema: DictConfig) -> list[str]:
    """Set `leaves` in `schema`, and say which of them do not fit it."""
    known, faults = schema_keys(), []
    for key, value in leaves.items():
        if key not in known:
            near = nearest(key, known)
            faults.append(f"{key}: there is no such setting" + (f"; did you mean {near}?" if near else ""))
            continue
        try:
            OmegaConf.update(schema, key, value)
        except OmegaConfBaseException as error:
            faults.append(f"{key}: {str(error).splitlines()[0]}")
    return faults


def _spelt_out(leaves: dict[str, Any]) -> dict[str, Any]:
    """`leaves` with a range of workers as the two settings that it stands for."""
    workers = leaves.get("scale.num_workers")
    if not isinstance(workers, list) or len(workers) != 2:
        return leaves
    return leaves | {"scale.min_workers": workers[0], "scale.num_workers": workers[1]}


def _or_variable(key: str) -> str:
    return f" (or {ENVIRONMENT[key]})" if key in ENVIRONMENT else ""


_TEXTS = {item.key: item.type for section in sections(Config) for item in section.settings if "str" in item.type}
_MAPPINGS = [key for key, kind in _TEXTS.items() if kind.startswith("dict")]
_INTO_TEXTS = tuple(f"{key}." for key in _MAPPINGS)


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in _MAPPINGS:
            flat |= _leaves(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _plain(tree: Any) -> dict[str, Any]:
    """`tree` without OmegaConf's types; `${...}` is left as written, since it may name what only the schema has."""
    return cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False))
