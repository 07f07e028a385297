"""What a user may write for an encoder, and what is answered where there is none."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from parrot_dist.encoders import load_encoder
from parrot_dist.encoders.weights import digest
from parrot_dist.errors import UserError
from parrot_dist.local.encoders import write_random_encoders
from tests.hub import fetched, offline

OLD, NEW = 40 * "a", 40 * "b"


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    return write_random_encoders(str(tmp_path_factory.mktemp("encoders")))


@pytest.mark.parametrize("spec", ["", "ssam", "ssam:", "hf:", "wav:x", "/some/folder"])
def test_a_spec_of_another_form_is_refused(spec):
    with pytest.raises(UserError, match="write ssam:"):
        load_encoder(spec)


@pytest.mark.parametrize("spec", ["ssam:{}/none.pth", "ssam:{}", "ssam:{}/none", "hf:{}", "hf:{}/none"])
def test_a_place_without_an_encoder_is_named_with_what_was_looked_for(spec, tmp_path):
    with pytest.raises(UserError, match=r"looked for") as error:
        load_encoder(spec.format(tmp_path))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("family", ["ssam", "hf"])
def test_a_hub_id_that_cannot_be_had_is_named(family, monkeypatch, tmp_path):
    offline(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"some/model: .*Hugging Face Hub"):
        load_encoder(f"{family}:some/model")


@pytest.mark.parametrize(("branch", "family"), [("mamba", "ssam"), ("attention", "hf")])
def test_a_hub_id_is_read_at_its_revision_without_the_hub(specs, tmp_path, monkeypatch, branch, family):
    newer = write_random_encoders(str(tmp_path / "newer"), seed=1)
    both = {OLD: specs[branch].partition(":")[2], NEW: newer[branch].partition(":")[2]}
    fetched(offline(tmp_path, monkeypatch), "me/encoder", NEW, both)
    new, old = load_encoder(f"{family}:me/encoder"), load_encoder(f"{family}:me/encoder", revision=OLD)
    assert (new.digest, new.revision) == (load_encoder(newer[branch]).digest, NEW)
    assert (old.digest, old.revision) == (load_encoder(specs[branch]).digest, OLD)
    assert load_encoder(specs[branch]).revision == ""


def test_a_revision_goes_with_the_hub_only(specs):
    for spec in specs.values():
        with pytest.raises(UserError, match="revision 'main' goes with a Hub id"):
            load_encoder(spec, revision="main")


def test_an_unknown_readout_is_refused(specs):
    with pytest.raises(UserError, match="released"):
        load_encoder(specs["mamba"], readout="true")
    with pytest.raises(UserError, match="Audio-Mamba only"):
        load_encoder(specs["attention"], readout="frequency")


def test_random_encoders_are_the_same_bytes_each_time(specs, tmp_path):
    again = write_random_encoders(str(tmp_path))
    other = write_random_encoders(str(tmp_path / "other"), seed=1)
    for branch, spec in specs.items():
        first, second, third = (load_encoder(each[branch]) for each in ({branch: spec}, again, other))
        assert first.spec == spec
        assert first.digest == second.digest != third.digest


def test_random_encoders_tell_sounds_apart_and_not_their_noise(specs):
    time = torch.arange(24000) / 16000

    def buzz(hertz, seed):
        generator = torch.Generator().manual_seed(seed)
        tones = sum(torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 20))
        return 0.1 * tones + 0.002 * torch.randn(24000, generator=generator)

    for spec in specs.values():
        low, same, high = load_encoder(spec).embed([buzz(110, 0), buzz(110, 1), buzz(220, 0)])
        assert (low - high).norm() > 5 * (low - same).norm()


def test_drawing_weights_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    write_random_encoders(str(tmp_path))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("name", "change"),
    [("preprocessor_config.json", {"do_normalize": False}), ("config.json", {"layer_norm_eps": 0.5})],
)
def test_a_changed_description_is_another_encoder(tmp_path, name, change):
    spec = write_random_encoders(str(tmp_path))["attention"]
    before = load_encoder(spec)
    file = Path(spec.removeprefix("hf:")) / name
    described = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(described | change))
    after = load_encoder(spec)
    sound = [torch.linspace(0, 1, 8000)]
    assert not torch.equal(before.embed(sound), after.embed(sound))
    assert before.digest != after.digest


def test_digest_is_over_contents_in_order(tmp_path):
    files = []
    for name in "ab":
        files.append(tmp_path / name)
        files[-1].write_text(name)
    parts = b"".join(hashlib.sha256(name).digest() for name in (b"a", b"b"))
    assert digest(files) == hashlib.sha256(parts).hexdigest() != digest(files[::-1])


def test_the_files_of_an_audio_mamba_make_it_again_as_it_is_now(specs, tmp_path):
    encoder = load_encoder(specs["mamba"], readout="frequency")
    with torch.no_grad():
        encoder.blocks[1].mixer.A_log.add_(0.1)
    for name, content in encoder.files().items():
        (tmp_path / name).write_bytes(content)
    again = load_encoder(f"ssam:{tmp_path}", readout="frequency")
    sound = [torch.linspace(0, 1, 8000)]
    assert torch.equal(again.embed(sound), encoder.embed(sound))
    assert not torch.equal(again.embed(sound), load_encoder(specs["mamba"], readout="frequency").embed(sound))
