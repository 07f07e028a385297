"""The training job: model, loop, checkpoints, and the thin shell that puts them on a Ray cluster."""
