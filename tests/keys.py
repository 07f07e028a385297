"""The access keys of the tests' S3 server, and where they are found."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path

from parrot_dist.local.s3 import S3Server


def keys_of(s3: S3Server) -> dict[str, str]:
    """The server's keys as variables of an environment, as a Kubernetes Secret gives them."""
    content = configparser.ConfigParser()
    content.read(s3.env["AWS_SHARED_CREDENTIALS_FILE"])
    return {name.upper(): value for name, value in content["default"].items()}


def secret_of(s3: S3Server) -> str:
    """The key that nobody may see."""
    return keys_of(s3)["AWS_SECRET_ACCESS_KEY"]


def contents_of(folder: Path) -> dict[str, bytes]:
    """Path -> content, of every file below `folder`."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holding(word: str, contents: Mapping[str, bytes]) -> list[str]:
    """The places, of those whose contents are given, in which `word` is."""
    return [place for place, content in contents.items() if word.encode() in content]
