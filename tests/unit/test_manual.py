"""The settings for people: every key has a meaning, the page is current, help and completion follow the schema."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from parrot_dist import crossval, manual, train
from parrot_dist.config import Config, schema_keys
from parrot_dist.local import demo
from parrot_dist.schema import About, sections

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_every_key_and_every_section_has_a_meaning() -> None:
    for section in sections(Config):
        assert section.meaning
        assert not section.meaning.startswith(("Data(", "Config("))  # what dataclass writes where there is no docstring
        assert [item.key for item in section.settings if not item.about.meaning] == []


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == manual.markdown(), "run: python -m parrot_dist.manual > docs/configuration.md"


def test_the_tables_of_the_page_have_four_columns() -> None:
    rows = [line for line in manual.markdown().splitlines() if line.startswith("|")]
    assert {row.count(" | ") for row in rows if "---" not in row} == {3}


@pytest.mark.parametrize("program", [train, crossval, demo])
def test_help_names_every_key_within_the_width_of_the_terminal(
    program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["program", "--help"])
    monkeypatch.setenv("COLUMNS", "70")
    with pytest.raises(SystemExit, match="0"):
        program.main()
    lines = capsys.readouterr().out.splitlines()
    assert set(schema_keys()) <= {line.split()[0] for line in lines if line.strip()}
    assert max(len(line) for line in lines if "://" not in line) <= 70
    text = " ".join(" ".join(lines).split())
    assert "Sinkhorn iterations (int, above 0; default 50)" in text
    assert "(list of str; must be given)" in text


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fusion.na", ["fusion.name="]),
        ("checkpoint.", ["checkpoint.every_steps=", "checkpoint.keep="]),
        ("fusion.name=ca", []),
        ("fusion.name=parr", ["parrot"]),
        ("optim.precision=", ["float32", "bf16", "fp16"]),
        ("optim.lr=", []),
    ],
)
@pytest.mark.parametrize("module", ["train", "crossval", "evaluate"])
def test_completion_offers_keys_and_choices(typed: str, offered: list[str], module: str) -> None:
    line = f"python -m parrot_dist.{module} seed=1 {typed}"
    words = line.replace("=", " = ").split()  # as bash splits them
    script = f"""
        {manual.completion()}
        compopt() {{ :; }}  # only exists while a person types
        COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=({" ".join(words)})
        _parrot_dist
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    answer = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    assert answer.stdout.split() == (offered if module != "evaluate" else [])
    assert answer.stderr == ""


@pytest.mark.parametrize(
    ("about", "right", "wrong", "words"),
    [
        (About(above=0), 0.1, 0, "above 0"),
        (About(least=2), 2, 1, "2 or more"),
        (About(least=0, below=1), 0, 1, "0 or more and below 1"),
        (About(choices=("a", "b")), "a", "c", "one of a, b"),
        (About(choices=("a", "b")), ["b"], ["a", "c"], "one of a, b"),
    ],
)
def test_bounds(about: About, right: object, wrong: object, words: str) -> None:
    assert (about.holds(right), about.holds(wrong), about.allowed) == (True, False, words)
