"""What is shown to people."""

from __future__ import annotations

import pickle

import pytest

from parrot_dist.errors import Unreachable, UserError


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("https://me:planted@host:5000/a: refused", "https://host:5000/a: refused"),
        ("s3://key:planted@bucket/a: no such bucket", "s3://bucket/a: no such bucket"),
        ("http://me:pla/nted@host and http://other:planted@host", "http://host and http://host"),
        ("s3://bucket/a@b.wav, file:///a@b and me@host stay", "s3://bucket/a@b.wav, file:///a@b and me@host stay"),
    ],
)
def test_no_password_of_a_url_is_in_what_is_shown(said: str, shown: str) -> None:
    assert str(UserError(said)) == shown
    assert str(pickle.loads(pickle.dumps(Unreachable(said)))) == shown
