"""Audio-Mamba: the released code's numbers, independence of the batch, partial unfreezing, bad checkpoints."""

import os
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from parrot_dist.encoders import load_encoder
from parrot_dist.encoders.ssam import Shape, SsamEncoder
from parrot_dist.errors import UserError
from tests.prefix import BOUNDARIES, check_prefix

MINI = Path(__file__).parents[1] / "data/ssam_mini"
CHECKPOINT = MINI / "checkpoints/checkpoint-99.pth"
GOLDEN = np.load(MINI / "expected.npz")
LENGTHS = [12800, 20800, 32000, 59360]


def golden_audio():
    return [torch.from_numpy(GOLDEN[f"n{samples}_pcm16"] / np.float32(32768)) for samples in LENGTHS]


def noise(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


@pytest.fixture
def mini():
    return load_encoder(f"ssam:{MINI}")


@pytest.fixture(scope="module")
def weights():
    return torch.load(CHECKPOINT, weights_only=True)["model"]


def saved(folder, weights):
    torch.save({"model": weights}, folder / "changed.pth")
    return f"ssam:{folder / 'changed.pth'}"


def test_equals_the_released_code(mini):
    frames, lengths = mini.frames(golden_audio())
    scenes = mini.embed(golden_audio())
    assert mini.dim == 240
    assert frames.shape == (4, 93, 240)
    for row, samples in enumerate(LENGTHS):
        expected = torch.from_numpy(GOLDEN[f"n{samples}_frames"])
        torch.testing.assert_close(frames[row, : lengths[row]], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(scenes[row], torch.from_numpy(GOLDEN[f"n{samples}_scene"]), atol=1e-4, rtol=0)
        assert not frames[row, lengths[row] :].any()


def test_an_embedding_does_not_depend_on_its_batch(mini):
    audio = noise(4800, 192000, 1, 32000, 31999)
    alone = torch.cat([mini.embed([waveform]) for waveform in audio])
    error = (mini.embed(audio) - alone).norm(dim=1) / alone.norm(dim=1)
    assert error.max() < 1e-5


@given(st.integers(1, 2000))
def test_kept_steps_are_those_of_the_released_rule(frames):
    """The released code pads by 200 - frames % 200, also when that is 200, and drops int(50 * pad / 200) steps."""
    encoder = SsamEncoder(Shape(8, 1, 8, 2, 1, 4, 4, 16, 250), "released", "test", "")
    pad = 200 - frames % 200
    assert encoder._kept(frames) == 50 * (frames + pad) // 200 - int(50 * pad / 200)


@pytest.mark.parametrize(("width", "dim"), [(192, 960), (384, 1920), (768, 3840)])
def test_every_published_size_is_read_from_the_weights(width, dim):
    """Tiny, small and base, with one of their blocks."""
    torch.manual_seed(0)
    weights = SsamEncoder(Shape(width, 1, 3 * width, 24, width // 16, 4, 4, 16, 250), "released", "", "").state_dict()
    encoder = SsamEncoder.from_weights(weights, "released", "", "")
    assert encoder.dim == dim
    frames, lengths = encoder.frames(noise(8000))
    assert frames.shape == (1, int(lengths[0]), dim)


def test_true_frequency_order_holds_the_same_tokens(mini):
    audio = noise(16000 * 2 - 160)  # one whole piece, so that every token is kept
    frequency = load_encoder(f"ssam:{MINI}", readout="frequency")
    released, true = (encoder.frames(audio)[0].view(50, 5, 48) for encoder in (mini, frequency))
    assert not torch.equal(released, true)
    # token (time t, band f) is number 5 t + f; the released fold calls number 50 f + t (t, f)
    assert torch.equal(released.transpose(0, 1).flatten(0, 1), true.flatten(0, 1))


def test_frequency_order_puts_one_moment_in_one_frame(mini):
    mini.readout = "frequency"
    hidden = mini.stem(noise(31840))
    early, late = hidden.x.clone(), hidden.x.clone()
    late[:, -5:] += 1.0  # the five bands of the last moment
    changed = [mini.read_out(type(hidden)(x, hidden.lengths)) for x in (early, late)]
    assert torch.equal(changed[0][:, :-1], changed[1][:, :-1])
    assert not torch.equal(changed[0][:, -1], changed[1][:, -1])


def test_safetensors_gives_the_same_encoder(mini, weights, tmp_path):
    save_file(weights, tmp_path / "mini.safetensors")
    other = load_encoder(f"ssam:{tmp_path / 'mini.safetensors'}")
    assert torch.equal(other.embed(noise(8000)), mini.embed(noise(8000)))
    assert other.digest != mini.digest


def test_the_newest_epoch_of_a_folder_is_taken(weights, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for epoch, factor in ((9, 1.0), (100, 2.0)):
        scaled = weights | {"encoder_norm.weight": factor * torch.ones(48), "encoder_norm.bias": torch.zeros(48)}
        torch.save({"model": scaled}, tmp_path / f"checkpoints/checkpoint-{epoch}.pth")
    assert load_encoder(f"ssam:{tmp_path}").encoder_norm.weight[0] == 2.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("blocks.1.norm.weight"), "no blocks.1.norm.weight"),
        (lambda w: w.pop("pos_embed"), "has no pos_embed"),
        (lambda w: w.update({"blocks.1.extra": torch.zeros(1)}), "unknown blocks.1.extra"),
        (lambda w: w.update({"encoder_norm.bias": torch.zeros(47)}), "encoder_norm.bias is (47,), not (48,)"),
        (lambda w: w.pop("pred.0.weight"), None),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(weights, tmp_path, change, words):
    changed = dict(weights)
    change(changed)
    if words is None:
        load_encoder(saved(tmp_path, changed))
    else:
        with pytest.raises(UserError) as error:
            load_encoder(saved(tmp_path, changed))
        assert words in str(error.value)


def test_a_checkpoint_as_its_trainer_saves_it_is_read(mini, weights, tmp_path, monkeypatch):
    class Settings:
        def __init__(self):
            self.rate = np.float64(0.1)

    monkeypatch.setitem(sys.modules, "gone", ModuleType("gone"))
    monkeypatch.setattr("gone.Settings", Settings, raising=False)
    Settings.__module__, Settings.__qualname__ = "gone", "Settings"
    arguments = Namespace(output=Path("runs"), config=Settings(), betas=(0.9, 0.95))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict()
    whole = {"model": weights, "optimizer": optimizer, "epoch": 99, "scaler": {"scale": 65536.0}, "args": arguments}
    torch.save(whole, tmp_path / "whole.pth")
    monkeypatch.delitem(sys.modules, "gone")
    read = load_encoder(f"ssam:{tmp_path / 'whole.pth'}")
    assert torch.equal(read.embed(noise(16000)), mini.embed(noise(16000)))


class Evil:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("function", "words"), [(os.system, "touch {}"), (exec, "open({!r}, 'w')"), (os.mkdir, "{}"), (Path.touch, "{}")]
)
def test_pickled_code_is_not_run(weights, tmp_path, function, words, legacy):
    trace, file = tmp_path / "trace", tmp_path / "evil.pth"
    argument = Path(trace) if function is Path.touch else words.format(str(trace))
    content = {"model": weights, "args": Evil(function, argument)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with suppress(UserError):  # refused, or read with the call left out
        load_encoder(f"ssam:{file}")
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # it would have run


@pytest.mark.parametrize("content", [{"model": [1, 2]}, [1, 2], {"model": {"a": 1}}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no dictionary of tensors"):
        load_encoder(f"ssam:{tmp_path / 'other.pth'}")


@pytest.mark.parametrize("what", BOUNDARIES)
def test_activations_of_the_frozen_prefix_stand_for_the_audio(mini, what):
    check_prefix(mini, noise(4800, 65000, 31999), what)


def test_last_block_trains_with_the_norm_behind_it(mini):
    mini.unfreeze("last:1")
    trained = {name for name, parameter in mini.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in mini.named_parameters() if n.startswith(("blocks.2.", "encoder_norm."))}
    assert mini.train().blocks[2].training
    assert not mini.blocks[1].training


@pytest.mark.parametrize("what", ["all", "last:1", "last:3", "blocks.0.mixer.D", "patch_embed.*, cls_token"])
def test_every_trained_parameter_gets_a_gradient_and_no_other(mini, what):
    mini.unfreeze(what)
    mini.train()
    (mini(noise(40000, 8000)) ** 2).sum().backward()
    for name, parameter in mini.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


def test_all_leaves_the_patch_embedding_frozen(mini):
    mini.unfreeze("all")
    assert {name for name, p in mini.named_parameters() if not p.requires_grad} == {
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }


def test_the_frozen_prefix_keeps_no_graph(mini):
    mini.unfreeze("last:1")
    seen = []
    for block in mini.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    mini(noise(8000))
    assert seen == [False, False, True]
    mini.unfreeze("none")
    assert not mini(noise(8000)).requires_grad


@pytest.mark.parametrize("what", ["last:4", "last:0", "last:x", "last:", "blocks.7.*", "everything", ""])
def test_an_impossible_choice_says_how_many_blocks_there_are(mini, what):
    with pytest.raises(UserError, match="3 blocks"):
        mini.unfreeze(what)


def test_depths_rise_from_stem_to_read_out(mini):
    assert [mini.layer_index(name) for name in ("cls_token", "blocks.0.norm.bias", "blocks.2.mixer.D")] == [0, 1, 3]
    assert mini.layer_index("encoder_norm.weight") == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_audio_that_is_not_finite_is_named(mini, bad):
    audio = noise(5000, 6000, 7000)
    audio[1][17] = bad
    with pytest.raises(ValueError, match="waveform 1 of the batch"):
        mini.embed(audio)


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(1, 9), torch.zeros(9, dtype=torch.int16)])
def test_what_is_no_waveform_is_named(mini, bad):
    with pytest.raises(ValueError, match="waveform 1 of the batch"):
        mini.embed([torch.zeros(9), bad])


def test_an_empty_batch_is_refused(mini):
    with pytest.raises(ValueError, match="no waveforms"):
        mini.embed([])


def test_silence_one_sample_and_a_long_recording_have_embeddings(mini):
    embeddings = mini.embed([torch.zeros(16000), torch.ones(1), *noise(16000 * 60)])
    assert embeddings.shape == (3, 240)
    assert embeddings.isfinite().all()


def test_bf16_autocast_stays_near_float32_and_returns_it(mini):
    mini.unfreeze("last:1")
    audio = noise(20000, 40000)
    exact = mini(audio)
    with torch.autocast("cpu", torch.bfloat16):
        rough = mini(audio)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.02
    rough.square().sum().backward()
    assert mini.encoder_norm.weight.grad.isfinite().all()
