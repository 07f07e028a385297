"""Names from this project and from other packages, and what is said of those that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from parrot_dist.encoders.load import ENCODERS
from parrot_dist.errors import UserError
from parrot_dist.fusion import HEADS, build_head
from parrot_dist.registry import Registry
from shards.corpora import READERS
from tests.plugins import install

GROUP = "parrot_dist.heads"
BATCH_NORM = """
from torch import nn
from parrot_dist.fusion import Head

class Normed(Head):
    def __init__(self, mamba_dim, attention_dim, num_classes, settings):
        super().__init__(mamba_dim, num_classes, settings)
        self.norm = nn.BatchNorm1d(mamba_dim)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("registry", [HEADS, ENCODERS, READERS])
def test_everything_built_in_can_be_imported(registry: Registry[object]) -> None:
    assert len(list(registry)) > 1
    assert all(callable(registry[name]) for name in registry)


def test_a_package_adds_names_behind_those_of_this_project(site: Path) -> None:
    before = list(HEADS)
    install(site, "others", {"others_head.py": "Head = 7"}, {GROUP: {"zeta": "others_head:Head", "eta": "os:sep"}})
    assert list(HEADS) == [*before, "eta", "zeta"]
    assert HEADS["zeta"] == 7
    assert "zeta" not in READERS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("", "AttributeError"),
    ],
)
def test_a_plugin_that_fails_to_import_is_named_with_its_package(site: Path, text: str, reason: str) -> None:
    module = f"broken_{abs(hash(text))}"  # a name of its own: what failed once is not in sys.modules, what did not is
    install(site, "broken-package", {f"{module}.py": text}, {GROUP: {"mine": f"{module}:Mine"}})
    with pytest.raises(UserError, match="cannot be imported") as error:
        HEADS["mine"]
    assert f"fusion.name: 'mine', {module}:Mine of broken-package" in str(error.value)
    assert reason in str(error.value)


def test_a_name_that_two_offer_is_refused_and_both_are_named(site: Path) -> None:
    install(site, "usurper", {}, {GROUP: {"parrot": "os:sep"}})
    with pytest.raises(UserError, match=r"offered twice, by .*Parrot of this project and os:sep of usurper"):
        HEADS["parrot"]
    assert list(HEADS).count("parrot") == 1


def test_an_unknown_name_gets_the_nearest_or_all() -> None:
    with pytest.raises(UserError, match=r"fusion\.name: there is no 'parot'; did you mean parrot\?"):
        HEADS["parot"]
    with pytest.raises(UserError, match="it is one of ssam, hf"):
        ENCODERS["quite-another"]


def test_a_head_that_checkpoints_could_not_keep_is_refused(site: Path) -> None:
    install(site, "normed", {"normed_head.py": BATCH_NORM}, {GROUP: {"normed": "normed_head:Normed"}})
    with pytest.raises(UserError, match=r"fusion\.name=normed: .* not norm\.num_batches_tracked, norm\.running_mean"):
        build_head("normed", 8, 8, 2)
