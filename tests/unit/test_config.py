"""One configuration: every mistake is found at once and named (contract 1)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as at_most
from hypothesis import strategies as st

from parrot_dist import configuration
from parrot_dist.config import schema_keys
from parrot_dist.errors import UserError

MINIMAL = [
    "name=test",
    "output=out",
    "data.shards=corpus",
    "data.classes=[anger,joy]",
    "encoders.mamba.source=ssam:a",
    "encoders.attention.source=hf:b",
]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARROT_CONFIG", raising=False)
    monkeypatch.delenv("PARROT_SHARDS", raising=False)
    monkeypatch.delenv("PARROT_OUTPUT", raising=False)


def faults(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        configuration.load(None, [*MINIMAL, *words])
    return str(caught.value)


def test_defaults_are_the_papers() -> None:
    settings = configuration.load(None, MINIMAL)
    assert (settings.fusion.epsilon, settings.fusion.iterations, settings.fusion.dropout) == (0.05, 50, 0.3)
    assert (settings.optim.batch_size, settings.optim.lr, settings.optim.epochs) == (32, 1e-3, 50)


def test_words_win_over_the_file_and_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("output: /from-file\noptim: {epochs: 3, lr: 0.5}\n")
    monkeypatch.setenv("PARROT_OUTPUT", "/from-environment")
    monkeypatch.setenv("PARROT_SHARDS", "/shards-from-environment")
    words = [word for word in MINIMAL if not word.startswith(("output", "data.shards"))]
    settings = configuration.load(str(file), [*words, "optim.lr=0.25"])
    assert (settings.output, settings.data.shards) == ("/from-file", "/shards-from-environment")
    assert (settings.optim.epochs, settings.optim.lr) == (3, 0.25)


def test_a_prepared_cluster_needs_no_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: named\n" + "data: {classes: [anger, joy]}\n")
    monkeypatch.setenv("PARROT_CONFIG", f"file://{file}")
    settings = configuration.load(None, [word for word in MINIMAL if not word.startswith(("name", "data.classes"))])
    assert (settings.name, settings.data.classes) == ("named", ["anger", "joy"])
    assert configuration.load(None, MINIMAL).name == "test"
    monkeypatch.setenv("PARROT_CONFIG", f"file://{tmp_path}/absent.yaml")
    with pytest.raises(UserError, match=r"absent\.yaml: there is no such file"):
        configuration.load(None, MINIMAL)


def test_a_range_of_workers_is_a_maximum_and_a_minimum() -> None:
    scale = configuration.load(None, [*MINIMAL, "scale.num_workers=[1,4]"]).scale
    assert (scale.min_workers, scale.num_workers) == (1, 4)
    assert configuration.load(None, MINIMAL).scale.min_workers == 0
    assert "scale.min_workers: must be at most scale.num_workers" in faults("scale.num_workers=[4,2]")
    assert "scale.num_workers: Value '[1, 2, 3]'" in faults("scale.num_workers=[1,2,3]")


def test_all_mistakes_are_named_at_once_with_the_nearest_right_name() -> None:
    text = faults("optim.batchsize=8", "fuson.name=ot", "optim.epochs=many", "encoders.mamba.lr=fast", "seed=-1")
    assert "optim.batchsize: there is no such setting; did you mean optim.batch_size?" in text
    assert "fuson.name: there is no such setting; did you mean fusion.name?" in text
    assert "optim.epochs: Value 'many'" in text
    assert "seed: must be 0 or more" in text
    assert "encoders.mamba.lr: Value 'fast'" in text


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("fusion.name=parot", "fusion.name: must be one of parrot"),
        ("optim.batch_size=33", "optim.batch_size: must be a multiple of data.lanes"),
        ("scale.num_workers=17", "scale.num_workers: must be between 1 and data.lanes"),
        ("optim.precision=fp16", "fp16 needs scale.use_gpu"),
        ("data.split.fold=5", "data.split.fold: must be below data.split.folds"),
        ("data.classes=[a,a]", "data.classes: names an emotion twice"),
        ("data=3", "data: there is no such setting"),
        ("data.emotions={happy: gladness}", "data.emotions: must map every label to one of data.classes"),
        ("data.emotions.very.happy=joy", "data.emotions: must map every label to one of data.classes"),
        ("name=a/b", "name: must be a plain name"),
        ("name=${nothing}", "nothing"),
        ("optim.weight_decay=-1", "optim.weight_decay: must be 0 or more"),
        ("encoders.attention.lr=0", "encoders.attention.lr: must be above 0"),
        ("data.max_seconds=inf", "data.max_seconds: must be 0.1 or more and below 3600"),
        ("data.max_seconds=0.01", "data.max_seconds: must be 0.1 or more"),
        ("data.node_cache_gb=inf", "data.node_cache_gb: must be 0 or more and below 1e+06"),
        ("optim.lr=nan", "optim.lr: must be above 0"),
        ("output=", "output: must name a place"),
        ("name=null", "name: "),
        ("data.cache= ~", "data.cache: "),
        ("data.shards=''", "data.shards: must name a place"),
    ],
)
def test_contradictions(word: str, complaint: str) -> None:
    assert complaint in faults(word)


def test_what_is_missing_is_named_with_its_environment_variable() -> None:
    with pytest.raises(UserError) as caught:
        configuration.load(None, [])
    assert "output: must be given (or PARROT_OUTPUT)" in str(caught.value)
    assert "encoders.mamba.source: must be given" in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "number.yaml").write_text("3\n")
    (tmp_path / "other.yaml").write_text("data: {classes: {a: 1}}\n")
    for name, complaint in (
        ("none.yaml", "no such configuration file"),
        ("broken.yaml", "not readable as YAML"),
        ("list.yaml", "holds a list"),
        ("number.yaml", "holds '3'"),
        ("other.yaml", "cannot be used"),
    ):
        with pytest.raises(UserError, match=complaint):
            configuration.load(str(tmp_path / name), [])


def test_a_configuration_survives_its_file() -> None:
    settings = configuration.load(None, [*MINIMAL, "name=run-${fusion.name}", "fusion.name=ot"])
    assert settings.name == "run-ot"
    assert configuration.loads(configuration.dumps(settings)) == settings


def is_plain(text: str) -> bool:
    return text not in ("null", "~", "???") and "${" not in text


@at_most(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"])).map(str.strip).filter(is_plain))
def test_a_text_is_taken_as_it_stands_and_survives_its_file(text: str) -> None:
    unquoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PARROT_CONFIG", raising=False)
        settings = configuration.load(None, [*MINIMAL, f"encoders.mamba.unfreeze={text}"])
    assert settings.encoders.mamba.unfreeze == unquoted
    assert configuration.loads(configuration.dumps(settings)) == settings


LIKE_NUMBERS = ("2025_06_01", "12:30", "1e5", "01", "0x10", "yes", "no", "1.50", "2025-06-01", ".inf")
"""What YAML takes for something else than the text that it is."""


@pytest.mark.parametrize("text", LIKE_NUMBERS)
def test_a_text_that_looks_like_a_number_stays_what_it_is_in_words_and_files(tmp_path: Path, text: str) -> None:
    words = [f"name={text}", f"encoders.mamba.revision={text}", f"data.classes=[{text},b]"]
    emotions = [f"data.emotions={{{text}: {text}, dull: null}}", f"data.emotions.keen={text}"]
    settings = configuration.load(None, [*MINIMAL, *words, *emotions])
    assert (settings.name, settings.encoders.mamba.revision, settings.data.classes) == (text, text, [text, "b"])
    assert settings.data.emotions == {text: text, "dull": None, "keen": text}
    file = tmp_path / "job.yaml"
    file.write_text(
        f"name: {text}\noutput: {text}  # as it is\nencoders: {{mamba: {{revision: {text}}}}}\n"
        f"data:\n  classes: [{text}, 'b']\n  emotions: {{{text}: {text}, dull: null}}\n  max_seconds: 1e1\n"
    )
    left = [word for word in MINIMAL if not word.startswith(("name", "output", "data.classes"))]
    settings = configuration.load(str(file), left)
    assert (settings.name, settings.encoders.mamba.revision, settings.data.classes) == (text, text, [text, "b"])
    assert Path(settings.output).name == text
    assert (settings.data.emotions, settings.data.max_seconds) == ({text: text, "dull": None}, 10)


def test_what_is_no_text_is_yaml_and_quotes_do_not_count() -> None:
    words = ["name='a b'", 'data.classes=["a", b]', "encoders.mamba.revision=null", "data.cache=", "tracking=[]"]
    settings = configuration.load(None, [*MINIMAL, *words, "data.bucketing=yes", "scale.num_workers=2"])
    assert (settings.name, settings.data.classes, settings.data.cache) == ("a b", ["a", "b"], "")
    assert (settings.encoders.mamba.revision, settings.tracking) == (None, [])
    assert (settings.data.bucketing, settings.scale.num_workers) == (True, 2)


def test_a_run_may_go_on_elsewhere_and_longer_but_not_otherwise() -> None:
    old = configuration.load(None, MINIMAL)
    longer = configuration.load(None, [*MINIMAL, "scale.num_workers=4", "optim.epochs=60", "data.workers=2"])
    assert configuration.differences(old, longer) == []
    other = configuration.load(None, [*MINIMAL, "optim.lr=0.5", "fusion.name=ot"])
    assert configuration.differences(old, other) == ["fusion.name: parrot -> ot", "optim.lr: 0.001 -> 0.5"]


def test_every_setting_is_in_the_list_of_keys() -> None:
    assert {"name", "data.split.fold", "encoders.attention.unfreeze", "checkpoint.keep"} <= set(schema_keys())


def test_local_places_are_absolute_since_ray_changes_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    words = ["output=runs", "data.shards=s3://bucket/shards", "data.cache=cache", "data.node_cache=disk/12:30"]
    sources = ["encoders.mamba.source=ssam:model", "encoders.attention.source=hf:microsoft/wavlm-base"]
    settings = configuration.load(None, [*MINIMAL, *words, *sources])
    assert (settings.output, settings.data.node_cache) == (str(tmp_path / "runs"), str(tmp_path / "disk/12:30"))
    assert (settings.data.shards, settings.cache_url) == ("s3://bucket/shards", str(tmp_path / "cache"))
    assert settings.encoders.mamba.source == f"ssam:{tmp_path / 'model'}"
    assert settings.encoders.attention.source == "hf:microsoft/wavlm-base"
