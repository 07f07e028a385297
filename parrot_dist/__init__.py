"""PARROT: distributed training of speech emotion recognition with a Mamba and an attention encoder."""
