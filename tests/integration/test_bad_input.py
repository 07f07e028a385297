"""What bad input gets: one clear message and exit code 2, before a worker or a cluster is started."""

from __future__ import annotations

import configparser
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from s3fs import S3FileSystem
from safetensors.torch import save_file
from torch import Tensor

from parrot_dist import storage, train
from parrot_dist.encoders.weights import read_tensors, ssam_file
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.local.s3 import S3Server
from parrot_dist.training import checkpoint, lease
from tests.corpus import write_corpus
from tests.jobs import Driver, Material, settings, train_here

Attempt = Callable[..., str]


@pytest.fixture
def refused(
    material: Material, bucket_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Attempt:
    """Calls the entry point with words added to a sound job, and returns the message with which it is refused."""

    def attempt(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["train", *settings(material, bucket_url), *words])
        monkeypatch.setattr(train, "cluster", lambda scale: pytest.fail("a cluster was started"))
        assert train.main() == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert "Traceback" not in message
        assert secret_of(Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"])) not in message
        assert not storage.exists(f"{bucket_url}/run")  # no trace that another run would trip over
        return message

    return attempt


@pytest.fixture
def log_in(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Makes one entry of this process's credentials another; s3fs keeps its clients, so they have to be dropped."""

    def change(name: str, value: str) -> None:
        content = configparser.ConfigParser()
        content.read(s3.env["AWS_SHARED_CREDENTIALS_FILE"])
        content["default"][name] = value
        with (tmp_path / "credentials").open("w") as file:
            content.write(file)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        S3FileSystem.clear_instance_cache()

    yield change
    S3FileSystem.clear_instance_cache()


def secret_of(credentials: Path) -> str:
    content = configparser.ConfigParser()
    content.read(credentials)
    return content["default"]["aws_secret_access_key"]


def test_mistyped_settings_are_all_named_at_once(refused: Attempt) -> None:
    message = refused("optim.batchsize=8", "fusion.nmae=cnn", "optim.epochs=many", "nonsense=1")
    assert "optim.batchsize: there is no such setting; did you mean optim.batch_size?" in message
    assert "fusion.nmae: there is no such setting; did you mean fusion.name?" in message
    assert "optim.epochs: " in message
    assert "nonsense: there is no such setting" in message


def test_settings_that_contradict_each_other_are_all_named_at_once(refused: Attempt) -> None:
    message = refused("optim.batch_size=10", "scale.num_workers=5", "optim.precision=fp16")
    assert "optim.batch_size: must be a multiple of data.lanes (4)" in message
    assert "scale.num_workers: must be between 1 and data.lanes (4)" in message
    assert "optim.precision: fp16 needs scale.use_gpu=true" in message


@pytest.mark.parametrize("key", ["data.shards", "output"])
def test_a_bucket_that_does_not_exist(refused: Attempt, key: str) -> None:
    assert "s3://no-such-bucket/x" in refused(f"{key}=s3://no-such-bucket/x")


def test_a_prefix_without_a_corpus(refused: Attempt, bucket_url: str) -> None:
    message = refused(f"data.shards={bucket_url}/nothing")
    assert f"{bucket_url}/nothing: no index.parquet there; check the bucket and the prefix" in message


@pytest.mark.parametrize(
    ("name", "value"), [("aws_secret_access_key", "wrong"), ("aws_access_key_id", "AKIAIOSFODNN7EXAMPLE")]
)
def test_wrong_credentials(
    material: Material,
    bucket_url: str,
    log_in: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    s3: S3Server,
    name: str,
    value: str,
) -> None:
    log_in(name, value)
    monkeypatch.setattr("sys.argv", ["train", *settings(material, bucket_url)])
    monkeypatch.setattr(train, "cluster", lambda scale: pytest.fail("a cluster was started"))
    assert train.main() == 2
    message = capsys.readouterr().err
    assert f"{bucket_url}" in message
    assert "access refused" in message
    assert "Traceback" not in message
    assert secret_of(Path(s3.env["AWS_SHARED_CREDENTIALS_FILE"])) not in message


def test_a_driver_of_a_run_that_another_one_holds_changes_nothing_of_it(
    material: Material, bucket_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr("sys.argv", ["train", *settings(material, bucket_url, "optim.lr=1")])
    with lease.hold(f"{bucket_url}/run", pytest.fail):
        there = storage.list_files(f"{bucket_url}/run").keys()
        assert train.main() == 2
        assert storage.list_files(f"{bucket_url}/run").keys() == there
    assert "is being trained by process" in capsys.readouterr().err


def test_a_shard_that_was_cut_short(refused: Attempt, bucket_url: str) -> None:
    shard = storage.join(write_corpus(f"{bucket_url}/corpus", speakers=4, clips=8), "shard-000001.tar")
    storage.write_bytes(shard, storage.read_bytes(shard)[:-512])
    message = refused(f"data.shards={bucket_url}/corpus")
    assert "shard shard-000001.tar has" in message
    assert f"`python -m shards.index {bucket_url}/corpus` rebuilds the index" in message


def test_a_shard_that_was_replaced_by_one_of_the_same_size(refused: Attempt, bucket_url: str) -> None:
    shard = storage.join(write_corpus(f"{bucket_url}/corpus", speakers=4, clips=8), "shard-000000.tar")
    storage.write_bytes(shard, storage.read_bytes(shard).replace(b"s00-0000", b"s99-0000"))
    message = refused(f"data.shards={bucket_url}/corpus")
    assert "shard shard-000000.tar does not match the index" in message


def test_labels_without_a_class(refused: Attempt) -> None:
    message = refused("data.classes=[joy,sadness]")
    assert "data.classes:" in message
    assert "anger" in message


@pytest.mark.parametrize(("branch", "family"), [("mamba", "ssam"), ("attention", "hf")])
def test_an_encoder_path_without_a_checkpoint(refused: Attempt, bucket_url: str, branch: str, family: str) -> None:
    message = refused(f"encoders.{branch}.source={family}:{bucket_url}/nothing")
    assert f"{bucket_url}/nothing" in message


def spoil(branch: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], str]:
    """Writes an encoder whose tensors were changed below a folder, and gives its source."""

    def write(folder: Path) -> str:
        source = write_random_encoders(str(folder))[branch]
        place = source.partition(":")[2]
        tensors = read_tensors(ssam_file(place, None))
        change(tensors)
        save_file(tensors, f"{place}/model.safetensors", {"format": "pt"})
        return source

    return write


def confuse(branch: str, family: str) -> Callable[[Path], str]:
    """Writes encoders below a folder, and gives the one of `branch` as if it were of the other family."""
    return lambda folder: f"{family}:{write_random_encoders(str(folder))[branch].partition(':')[2]}"


NORM = "encoder.layer_norm.weight"
ENCODERS = {
    "mamba, a key too few": ("mamba", spoil("mamba", lambda own: own.pop("cls_token")), "no cls_token"),
    "mamba, a key too many": ("mamba", spoil("mamba", lambda own: own.update(x=torch.ones(1))), "unknown x"),
    "mamba, a HuBERT": ("mamba", confuse("attention", "ssam"), "not an Audio-Mamba checkpoint"),
    "attention, a key too few": ("attention", spoil("attention", lambda own: own.pop(NORM)), f"no {NORM}"),
    "attention, a key too many": (
        "attention",
        spoil("attention", lambda own: own.update({"encoder.x": torch.ones(1)})),
        "unknown encoder.x",
    ),
    "attention, an Audio-Mamba": ("attention", confuse("mamba", "hf"), "looked for config.json"),
}


@pytest.mark.parametrize(("branch", "write", "told"), ENCODERS.values(), ids=ENCODERS.keys())
def test_a_checkpoint_that_is_not_that_of_the_encoder(
    refused: Attempt, tmp_path: Path, branch: str, write: Callable[[Path], str], told: str
) -> None:
    message = refused(f"encoders.{branch}.source={write(tmp_path)}")
    assert message.startswith(f"error: encoders.{branch}: ")
    assert str(tmp_path) in message
    assert told in message


def test_a_training_checkpoint_given_for_an_encoder(refused: Attempt, bucket_url: str, material: Material) -> None:
    run = train_here(settings(material, f"{bucket_url}/other", "optim.epochs=1"))
    found = checkpoint.locate(run).url
    assert "not an Audio-Mamba checkpoint" in refused(f"encoders.mamba.source=ssam:{found}/model.safetensors")


def test_fewer_samples_than_one_global_batch_which_is_to_be_dropped(refused: Attempt) -> None:
    message = refused("optim.batch_size=400", "data.last_batch=drop")
    assert "data.last_batch:" in message
    assert "fewer than one global batch of 400" in message


def test_places_from_the_environment_are_used_and_refused_alike(
    material: Material, bucket_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in settings(material, "") if not word.startswith(("output=", "data.shards="))]
    monkeypatch.setenv("PARROT_SHARDS", f"{bucket_url}/nothing")
    monkeypatch.setenv("PARROT_OUTPUT", f"{bucket_url}/runs")
    monkeypatch.setattr("sys.argv", ["train", *words])
    monkeypatch.setattr(train, "cluster", lambda scale: pytest.fail("a cluster was started"))
    assert train.main() == 2
    assert f"{bucket_url}/nothing: no index.parquet there" in capsys.readouterr().err
    monkeypatch.delenv("PARROT_SHARDS")
    assert train.main() == 2
    assert "data.shards: must be given (or PARROT_SHARDS)" in capsys.readouterr().err


def test_an_address_where_no_cluster_is(
    material: Material, bucket_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("sys.argv", ["train", *settings(material, bucket_url, "fusion.name=cnn")])
    assert train.main() == 2
    assert capsys.readouterr().err.startswith("error: RAY_ADDRESS=127.0.0.1:1: ")


def test_the_command_itself_says_it_in_a_few_lines_and_never_calls_ray(material: Material, bucket_url: str) -> None:
    nobody = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    with Driver(settings(material, bucket_url, "data.classes=[joy,sadness]"), nobody) as driver:
        assert driver.finish() == 2
    assert driver.output.splitlines() == [
        f"error: data.classes: {material.corpus} holds utterances labelled anger, which is not among joy, sadness; "
        "data.emotions maps labels to classes, or to nothing"
    ]
