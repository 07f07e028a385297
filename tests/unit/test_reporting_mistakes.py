from __future__ import annotations

import base64

import numpy as np

from parrot_dist.reporting import mistakes
from parrot_dist.reporting.mistakes import surest_mistakes, to_urls


def test_the_surest_mistakes_come_first_and_what_is_right_not_at_all():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.9, 0.1]], np.float32)
    assert surest_mistakes(np.array([0, 1, 0, 0, 1]), probabilities).tolist() == [4, 2, 3, 1]
    assert surest_mistakes(np.array([0, 0, 1, 1, 0]), probabilities).tolist() == []


def test_nobody_has_to_listen_to_all_of_them():
    assert len(surest_mistakes(np.zeros(99, np.int64), np.tile([0.1, 0.9], (99, 1)))) == mistakes.MOST


def test_recordings_become_urls_as_long_as_there_is_room(monkeypatch):
    monkeypatch.setattr(mistakes, "AUDIO_BYTES", 10)
    urls = to_urls({7: b"fLaC12", 3: b"12345", 5: b"RIFF"})
    assert urls.keys() == {7, 5}
    kind, _, data = urls[7].partition(",")
    assert kind == "data:audio/flac;base64"
    assert base64.b64decode(data) == b"fLaC12"
    assert urls[5].startswith("data:audio/wav;")
