"""Transport over the frames of an utterance: in the head, in the encoders, and from training to prediction."""

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from parrot_dist import Predictor
from parrot_dist.encoders import load_encoder
from parrot_dist.fusion import HEADS, build_head, row_keys
from parrot_dist.reporting.result import PLAIN
from parrot_dist.training import checkpoint
from parrot_dist.training.evaluation import evaluate
from parrot_dist.training.inference import Place
from parrot_dist.training.publish import evaluate_checkpoint
from parrot_dist.training.snapshot import read_history
from parrot_dist.training.subject import open_subject
from tests.corpus import tone
from tests.jobs import settings, train_here

LENGTHS = [(4, 7), (1, 3), (6, 2), (5, 5), (3, 1)]
MAMBA, ATTENTION = 12, 16


def utterances(dim, branch, dtype=torch.float64):
    """Frames (T, dim) of each."""
    generator = torch.Generator().manual_seed(dim)
    # Far apart, so that there is something to choose between.
    return [5 * torch.randn(pair[branch], dim, generator=generator, dtype=torch.float64).to(dtype) for pair in LENGTHS]


def batch(frames):
    """(B, T, dim + 1)."""
    return pad_sequence([F.pad(x, (0, 1), value=1.0) for x in frames], batch_first=True)


def inputs(dtype=torch.float64, which=slice(None)):
    return [batch(utterances(dim, branch, dtype)[which]) for branch, dim in enumerate((MAMBA, ATTENTION))]


def frames_head(name="parrot", **options):
    torch.manual_seed(0)
    return build_head(name, MAMBA, ATTENTION, 3, over="frames", **options).double().eval()


@torch.no_grad()
def test_it_is_pots_plan_between_the_rows_of_the_frames():
    head = frames_head()
    found = head.features(*inputs(), None)
    for features, p, q in zip(found, utterances(MAMBA, 0), utterances(ATTENTION, 1), strict=True):
        R_p, R_q = head.mamba(p), head.attention(q)
        C = torch.cdist(R_p, R_q)
        n, m = C.shape
        weights = np.full(n, 1 / n), np.full(m, 1 / m)
        G = torch.from_numpy(ot.sinkhorn(*weights, (C / C.max()).numpy(), 0.05, numItermax=50, stopThr=0, warn=False))
        expected = [
            sum(G[i, j] * R_p[i] * R_q[j] for i in range(n) for j in range(m)),
            ((m * G.T @ R_p).var(0, correction=0) + 1e-6).sqrt(),
            R_q.mean(0),
            ((n * G @ R_q).var(0, correction=0) + 1e-6).sqrt(),
            R_p.mean(0),
        ]
        torch.testing.assert_close(features, torch.cat(expected), rtol=1e-6, atol=1e-9)


def test_no_utterance_sees_another_or_its_padding():
    head = frames_head()
    together = head(*inputs())
    for row in range(len(LENGTHS)):
        torch.testing.assert_close(together[row : row + 1], head(*inputs(which=slice(row, row + 1))))


@given(order=st.permutations(range(len(LENGTHS))), size=st.integers(1, 5))
@examples(max_examples=15)
def test_lone_predictions_are_the_same_bits_in_any_batch_and_order(order, size):
    head = frames_head().float()
    mamba, attention = inputs(torch.float32)
    whole = head.predict_alone(mamba, attention, None)
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    parts = [head.predict_alone(mamba[chunk], attention[chunk], None) for chunk in chunks]
    assert torch.equal(torch.cat(parts), whole[order])


@pytest.mark.parametrize("kind", ["none", "envelope", "unrolled"])
@pytest.mark.parametrize("name", ["parrot", "ot"])
def test_every_parameter_is_trained_and_the_plan_matters(name, kind):
    head = frames_head(name, plan_gradient=kind).train()
    logits = head(*inputs(), row_keys(0, 0, torch.arange(len(LENGTHS))))
    F.cross_entropy(logits, torch.arange(len(LENGTHS)) % 3).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in head.parameters())
    assert 0 <= head.marginal_error < 0.1
    strict, loose = (frames_head(name, epsilon=epsilon).features(*inputs(), None) for epsilon in (0.05, 5.0))
    assert (strict - loose).norm() > 0.01 * loose.norm()


def test_no_rows_at_all_still_reach_every_parameter():
    head = frames_head()
    logits = head(*(frames[:0] for frames in inputs()))
    assert logits.shape == (0, 3)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_it_needs_no_reference_and_leaves_other_heads_alone():
    heads = {name: build_head(name, MAMBA, ATTENTION, 3, over="frames") for name in HEADS}
    assert [name for name in heads if heads[name].over_frames] == ["parrot", "ot"]
    assert not any(head.needs_reference for head in heads.values())


@pytest.mark.parametrize("unfreeze", ["none", "last:1"])
def test_an_encoder_gives_its_frames_from_audio_and_from_what_is_kept(local_material, unfreeze):
    waveforms = [torch.from_numpy(tone(200, seconds)) for seconds in (0.3, 0.2)]
    for source in local_material.encoders.values():
        encoder = load_encoder(source)
        encoder.unfreeze(unfreeze)
        name, mean = encoder.prefix_name, encoder(waveforms)
        encoder.keeps_frames = True
        frames, there = (found := encoder(waveforms))[..., :-1], found[..., -1]
        assert there.sum(1).tolist() == encoder.frames(waveforms)[1].tolist()
        torch.testing.assert_close(frames.sum(1) / there.sum(1, keepdim=True), mean)
        torch.testing.assert_close(encoder(encoder.prefix(waveforms)), found, rtol=1e-5, atol=1e-6)
        assert (encoder.prefix_name == name) == (unfreeze != "none")


WORDS = (
    "optim.epochs=1",
    "optim.precision=float32",
    "fusion.over=frames",
    "fusion.plan_gradient=envelope",
    "encoders.attention.unfreeze=none",
)


@pytest.fixture(scope="module")
def run(local_material, tmp_path_factory):
    """A run with one frozen and one partly frozen encoder, whose embeddings are computed in parts."""
    folder = tmp_path_factory.mktemp("frames")
    return train_here(settings(local_material, str(folder), *WORDS, "optim.micro_batch=3"))


def test_it_trains_evaluates_and_predicts(run, tmp_path):
    subject = open_subject(run, None)
    assert (subject.mode, subject.reference) == (PLAIN, None)
    published = evaluate_checkpoint(run, "test", out=tmp_path)
    assert published.result.mode == PLAIN
    assert (tmp_path / "report.html").is_file()
    evaluation = evaluate(subject.task, subject.model, None, subject.task.parts.test, Place())
    predictor = Predictor.load(run, normalise=False)
    waves = [
        subject.task.corpus.decode(r, d).waveform for r, d in subject.task.corpus.read(evaluation.rows[:3]).items()
    ]
    alone = np.stack([predictor.predict(wave) for wave in waves])
    np.testing.assert_allclose(evaluation.probabilities(PLAIN)[:3], alone, rtol=0, atol=1e-5)


def test_it_trains_the_same_from_audio_as_from_kept_frames(local_material, run, tmp_path):
    again = train_here(settings(local_material, str(tmp_path), *WORDS, "data.keep_frozen=false"))
    kept, heard = (read_history(checkpoint.locate(url))[0] for url in (run, again))
    assert heard.train_loss == pytest.approx(kept.train_loss, rel=1e-4)
    assert heard.marginal_error == pytest.approx(kept.marginal_error, rel=0.1)
    assert kept.marginal_error is not None
