"""WavLM, HuBERT, wav2vec 2.0, UniSpeech-SAT, MMS: transformers' numbers, but independent of the batch."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    HubertConfig,
    HubertModel,
    UniSpeechSatConfig,
    UniSpeechSatModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from parrot_dist.encoders import load_encoder
from parrot_dist.errors import UserError
from tests.prefix import BOUNDARIES, check_prefix

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.2,
}
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
FAMILIES = {
    "wavlm": (WavLMConfig, WavLMModel, {}),
    "hubert": (HubertConfig, HubertModel, {}),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model, {}),
    "unispeech-sat": (UniSpeechSatConfig, UniSpeechSatModel, {}),
    "mms": (Wav2Vec2Config, Wav2Vec2Model, {"adapter_attn_dim": 8}),
}
EVERY = [(family, norm) for family in FAMILIES for norm in ("group", "layer")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a random model for each family and norm."""
    places = {}
    for family, norm in EVERY:
        torch.manual_seed(0)
        config, model, extra = FAMILIES[family]
        whole = model(config(**SMALL, **extra, **(GROUP if norm == "group" else LAYER)))
        for name, parameter in whole.named_parameters():
            if name.endswith("bias") or "norm" in name or "gru_rel_pos_const" in name:
                parameter.data.add_(0.3 * torch.randn_like(parameter))  # zeros and ones would hide mistakes
        places[family, norm] = folder = tmp_path_factory.mktemp(f"{family}-{norm}")
        whole.save_pretrained(folder)
        settings = {"sampling_rate": 16000, "do_normalize": norm == "layer"}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return places


@pytest.fixture
def copy(folders, tmp_path):
    """A HuBERT folder to spoil."""
    for file in folders["hubert", "layer"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def noise(*seconds):
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(int(16000 * length), generator=generator) + 0.02 for length in seconds]


@pytest.mark.parametrize(("family", "norm"), EVERY)
def test_one_utterance_gets_what_transformers_gives(folders, family, norm):
    folder = folders[family, norm]
    (audio,) = noise(1.3)
    values = audio
    if norm == "layer":
        values = torch.from_numpy(Wav2Vec2FeatureExtractor(do_normalize=True)(audio.numpy()).input_values[0])
    model = FAMILIES[family][1].from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = model(values[None]).last_hidden_state
    frames, lengths = load_encoder(f"hf:{folder}").frames([audio])
    assert lengths.tolist() == [expected.shape[1]]
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "norm"), EVERY)
def test_an_embedding_does_not_depend_on_its_batch(folders, family, norm):
    encoder = load_encoder(f"hf:{folders[family, norm]}")
    audio = noise(0.3, 12, 1, 3.7)
    alone = torch.cat([encoder.embed([waveform]) for waveform in audio])
    together = encoder.embed(audio)
    assert ((together - alone).norm(dim=1) / alone.norm(dim=1)).max() < 1e-5
    assert (together[0] - together[2]).norm() > 1e-3  # the encoder does tell them apart


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_pytorchs_fused_one(folders, family, monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **b: calls.append(1) or fused(*a, **b))
    load_encoder(f"hf:{folders[family, 'layer']}").embed(noise(0.3, 0.5))
    assert len(calls) == SMALL["num_hidden_layers"]


@pytest.mark.parametrize(("family", "norm"), EVERY)
def test_gradients_do_not_depend_on_the_batch(folders, family, norm):
    encoder = load_encoder(f"hf:{folders[family, norm]}")
    encoder.unfreeze("last:2")
    encoder.train()
    audio = noise(0.3, 0.9)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    together = torch.autograd.grad(encoder(audio).square().sum(), trained)
    one, other = (torch.autograd.grad(encoder([waveform]).square().sum(), trained) for waveform in audio)
    for whole, first, second in zip(together, one, other, strict=True):
        torch.testing.assert_close(whole, first + second, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("family", "norm"), EVERY)
@pytest.mark.parametrize("what", ["last:1", "all", "feature_extractor.*"])
def test_every_trained_parameter_gets_a_gradient_and_no_other(folders, family, norm, what):
    encoder = load_encoder(f"hf:{folders[family, norm]}")
    encoder.unfreeze(what)
    encoder.train()
    encoder(noise(0.5, 0.3)).square().sum().backward()
    assert any(parameter.requires_grad for parameter in encoder.parameters())
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(("family", "norm"), EVERY)
@pytest.mark.parametrize("what", BOUNDARIES)
def test_activations_of_the_frozen_prefix_stand_for_the_audio(folders, family, norm, what):
    check_prefix(load_encoder(f"hf:{folders[family, norm]}"), noise(0.5, 0.3, 0.9), what)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_last_block_takes_the_final_norm_only_where_it_is_final(folders, norm):
    encoder = load_encoder(f"hf:{folders['hubert', norm]}")
    encoder.unfreeze("last:1")
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert ("encoder.layer_norm.weight" in trained) == (norm == "layer")
    assert all(name.startswith(("encoder.layers.2.", "encoder.layer_norm.")) for name in trained)


def test_training_mode_is_deterministic(folders):
    encoder = load_encoder(f"hf:{folders['wav2vec2', 'group']}")
    encoder.unfreeze("all")
    audio = noise(0.4, 0.6)
    evaluated = encoder.eval()(audio)
    assert torch.equal(encoder.train()(audio), evaluated)
    assert not encoder.feature_extractor.training


def test_shorter_than_the_receptive_field_is_filled_with_zeros(folders):
    encoder = load_encoder(f"hf:{folders['hubert', 'group']}")
    frames, lengths = encoder.frames([torch.ones(1), torch.ones(399), *noise(0.3)])
    assert lengths.tolist()[:2] == [1, 1]
    assert frames.isfinite().all()
    filled = torch.cat([torch.ones(1), torch.zeros(399)])
    torch.testing.assert_close(encoder.embed([torch.ones(1)]), encoder.embed([filled]))


def test_silence_has_an_embedding(folders):
    for norm in ("group", "layer"):
        assert load_encoder(f"hf:{folders['wavlm', norm]}").embed([torch.zeros(8000)]).isfinite().all()


@pytest.mark.parametrize("family", ["wavlm", "hubert"])
def test_bf16_autocast_stays_near_float32_and_returns_it(folders, family):
    encoder = load_encoder(f"hf:{folders[family, 'group']}")
    encoder.unfreeze("last:1")
    audio = noise(0.5, 1.0)
    exact = encoder(audio)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(audio)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_do_normalize_comes_from_the_preprocessor_configuration(folders, copy):
    audio = noise(0.5)
    louder = [3 * audio[0]]
    (copy / "preprocessor_config.json").write_text('{"do_normalize": false}')
    as_is = load_encoder(f"hf:{copy}")
    assert not torch.allclose(as_is.embed(audio), as_is.embed(louder), atol=1e-3)
    (copy / "preprocessor_config.json").unlink()  # transformers' default is to normalise
    standard = load_encoder(f"hf:{copy}")
    torch.testing.assert_close(standard.embed(audio), standard.embed(louder), atol=1e-4, rtol=1e-4)


def test_another_sampling_rate_is_refused(copy):
    (copy / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with pytest.raises(UserError, match="8000 Hz"):
        load_encoder(f"hf:{copy}")


def test_a_model_of_another_kind_is_refused(copy):
    (copy / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"type 'bert'.*wavlm, hubert"):
        load_encoder(f"hf:{copy}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("encoder.layers.1.layer_norm.weight"), "no encoder.layers.1.layer_norm.weight"),
        (lambda w: w.update({"encoder.layers.9.x": torch.zeros(1)}), "unknown encoder.layers.9.x"),
        (
            lambda w: w.update({"encoder.layer_norm.bias": torch.zeros(31)}),
            "encoder.layer_norm.bias is (31,), not (32,)",
        ),
        (lambda w: w.pop("masked_spec_embed"), None),
        (lambda w: w.update({"project_q.weight": torch.zeros(1)}), None),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(copy, change, words):
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    if words is None:
        load_encoder(f"hf:{copy}")
    else:
        with pytest.raises(UserError) as error:
            load_encoder(f"hf:{copy}")
        assert words in str(error.value)


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"looked for config\.json and model\.safetensors"):
        load_encoder(f"hf:{copy}")


def test_a_damaged_file_of_weights_is_refused(copy):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="transformers cannot read it"):
        load_encoder(f"hf:{copy}")


@pytest.mark.parametrize(("family", "norm"), EVERY)
def test_its_files_make_it_again_as_it_is_now_without_a_word(folders, family, norm, tmp_path, caplog):
    encoder = load_encoder(f"hf:{folders[family, norm]}")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01)  # as training would
    for name, content in encoder.files().items():
        (tmp_path / name).write_bytes(content)
    again = load_encoder(f"hf:{tmp_path}")
    audio = noise(0.3, 0.7)
    assert torch.equal(again.embed(audio), encoder.embed(audio))
    assert not caplog.text
