"""Other loaders on the corpus of `bench_data.py`, one process each: the interpreter may be that of another environment.

    python tests/benchmarks/peers.py prepare|webdataset|streaming|shar URL WORKERS

`prepare` writes the corpus at URL once more in the forms of MosaicML streaming (URL/mds) and of lhotse Shar (URL/shar).
The others read one epoch in batches of 32 and print what `measure` gives as a line of JSON.
"""

from __future__ import annotations

import importlib.machinery
import io
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

BATCH, SEED = 32, 1
TICKS = os.sysconf("SC_CLK_TCK")


def measure(batches: Iterable[list[int]], total: int) -> dict[str, Any]:
    """Speed from the first batch until 95 % of an epoch of `total` utterances, and the order of what came.

    Args:
        batches: the numbers of the utterances in each batch, as they are delivered.
    """
    order: list[int] = []
    began = first = time.perf_counter()
    result: dict[str, Any] = {}
    for batch in batches:
        if not order:
            first, cpu = time.perf_counter(), cpu_seconds()
            counted = -len(batch)
        order += batch
        if len(order) >= 0.95 * total and not result:
            counted += len(order)
            result["utterances_per_second"] = counted / (time.perf_counter() - first)
            result["cpu_per_1000"] = (cpu_seconds() - cpu) / counted * 1000
    return result | {"first_batch": first - began, "epoch": time.perf_counter() - began, "order": order}


def cpu_seconds() -> float:
    """CPU time so far of this process and of all below it."""
    return sum(_ticks(process) for process in _family(os.getpid())) / TICKS


def _family(process: int) -> Iterator[int]:
    yield process
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from _family(int(child))


def _ticks(process: int) -> int:
    # User and system time, its own and that of the children it has waited for.
    return sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]))


def decode(data: bytes) -> np.ndarray:
    """FLAC by the library that all loaders here use."""
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


def numbers(batch: list[tuple[int, np.ndarray]]) -> list[int]:
    return [number for number, _ in batch]


def presigned(url: str, suffixes: tuple[str, ...]) -> list[str]:
    """An address for curl of each object at `url` itself whose name ends so."""
    import boto3

    from parrot_dist import storage

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    names = [name for name in storage.list_files(url) if "/" not in name and name.endswith(suffixes)]
    sign = boto3.client("s3").generate_presigned_url
    return [sign("get_object", {"Bucket": bucket, "Key": f"{prefix}/{name}"}, 3600) for name in names]


def loader(dataset: Any, workers: int, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, num_workers=workers, prefetch_factor=4, **options)


def decode_member(key: str, data: bytes) -> np.ndarray | None:
    return decode(data) if key.endswith("flac") else None


def webdataset(url: str, workers: int) -> Iterator[list[int]]:
    import webdataset as wds

    shards = [f"pipe:curl -sf '{address}'" for address in presigned(url, (".tar",))]
    dataset = wds.WebDataset(shards, shardshuffle=len(shards), seed=SEED).shuffle(1000).decode(decode_member)
    dataset = dataset.to_tuple("__key__", "flac").map(numbered).batched(BATCH, collation_fn=list)
    yield from map(numbers, loader(dataset, workers, batch_size=None))


def numbered(sample: tuple[str, np.ndarray]) -> tuple[int, np.ndarray]:
    return int(sample[0]), sample[1]


def stand_in_torchvision() -> None:
    """streaming imports torchvision, which audio does not need."""
    names = ["torchvision", *(f"torchvision.{name}" for name in ("transforms", "transforms.functional", "datasets"))]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]


def streaming(url: str, workers: int) -> Iterator[list[int]]:
    stand_in_torchvision()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # of a run that was killed

    class Clips(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return sample["number"], decode(sample["flac"])

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    with tempfile.TemporaryDirectory() as local:
        dataset = Clips(
            remote=f"{url}/mds", local=local, shuffle=True, shuffle_seed=SEED, batch_size=BATCH, num_canonical_nodes=1
        )
        yield from map(numbers, loader(dataset, workers, batch_size=BATCH, collate_fn=list))


class LoadAudio:
    """A lhotse dataset: a batch of cuts -> their waveforms."""

    def __getitem__(self, cuts: Any) -> list[tuple[int, np.ndarray]]:
        return [(int(cut.id), cut.load_audio()[0]) for cut in cuts]


def shar(url: str, workers: int) -> Iterator[list[int]]:
    from lhotse import CutSet
    from lhotse.dataset import SimpleCutSampler
    from lhotse.dataset.iterable_dataset import IterableDatasetWrapper

    fields = {}
    # lhotse tells the kinds of files by how their names end, also those of pipes.
    fields["cuts"] = [
        f"pipe:curl -sf '{address}' | gunzip #.jsonl" for address in presigned(f"{url}/shar", (".jsonl.gz",))
    ]
    fields["recording"] = [f"pipe:curl -sf '{address}' #.tar" for address in presigned(f"{url}/shar", (".tar",))]
    cuts = CutSet.from_shar(fields=fields, shuffle_shards=True, seed=SEED, split_for_dataloading=True)
    sampler = SimpleCutSampler(cuts.shuffle(buffer_size=1000), max_cuts=BATCH)
    dataset = IterableDatasetWrapper(LoadAudio(), sampler)
    yield from map(numbers, loader(dataset, workers, batch_size=None))


def prepare(url: str) -> None:
    """Write the clips of the corpus at `url`, in the same order and with as many in a shard, for streaming and Shar."""
    stand_in_torchvision()
    from lhotse import Recording
    from lhotse.shar import SharWriter
    from streaming import MDSWriter

    from parrot_dist import storage
    from parrot_dist.data.index import parse_members, read_index

    index = read_index(url)
    per_shard = len(index) // len(index.shard_sizes)
    columns = {"number": "int", "flac": "bytes"}
    with tempfile.TemporaryDirectory() as folder:
        mds = MDSWriter(out=f"{folder}/mds", columns=columns, size_limit=max(index.shard_sizes.values()))
        Path(folder, "shar").mkdir()
        with mds, SharWriter(f"{folder}/shar", fields={"recording": "flac"}, shard_size=per_shard) as cuts:
            for row, (key, shard) in enumerate(zip(index.key, index.shard, strict=True)):
                begin = int(index.offset[row])
                data = storage.read_bytes(f"{url}/{shard}", begin, begin + int(index.size[row]))
                flac = parse_members(data, key)["flac"]
                mds.write({"number": row, "flac": flac})
                cuts.write(Recording.from_bytes(flac, str(row)).to_cut())
        for file in sorted(Path(folder).rglob("*.*")):
            storage.write_bytes(f"{url}/{file.relative_to(folder)}", file.read_bytes())


def main() -> None:
    what, url, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "prepare":
        prepare(url)
        return
    from parrot_dist.data.index import read_index

    loaders = {"webdataset": webdataset, "streaming": streaming, "shar": shar}
    print(json.dumps(measure(loaders[what](url, workers), len(read_index(url)))))


if __name__ == "__main__":
    main()
