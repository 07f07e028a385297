"""Encoders on a real S3 server are the encoders that were put there."""

import pytest
import torch

from parrot_dist.encoders import load_encoder
from parrot_dist.errors import UserError
from parrot_dist.local.encoders import write_random_encoders


def test_an_encoder_from_s3_is_the_one_from_a_folder(bucket_url, tmp_path):
    remote, local = write_random_encoders(bucket_url), write_random_encoders(str(tmp_path))
    audio = [torch.linspace(-1, 1, 8000)]
    for branch, spec in remote.items():
        far, near = load_encoder(spec), load_encoder(local[branch])
        assert far.digest == near.digest
        assert torch.equal(far.embed(audio), near.embed(audio))


@pytest.mark.parametrize("family", ["ssam", "hf"])
def test_an_empty_prefix_is_named(bucket_url, family):
    with pytest.raises(UserError, match=bucket_url):
        load_encoder(f"{family}:{bucket_url}/nothing")
