"""`make bench-data`: this loader against others and against what the machine can do, as ratios from one run.

    python tests/benchmarks/bench_data.py [--endpoint URL] [--peers PYTHON] [--workers N] [--utterances N] [--out FILE]

Reads from any S3 server (`--endpoint`, or AWS_ENDPOINT_URL, with credentials from the usual chain; a bucket `parrot` is
made if it can be); without one it starts the local server of the demo, which is no measure of a production store. The
peers run in the interpreter PYTHON, of an environment with webdataset, mosaicml-streaming and lhotse. The table goes to
FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from parrot_dist import s3client, storage
from parrot_dist.data.audio import SAMPLE_RATE, encode_flac
from parrot_dist.data.index import Row, parse_members, read_index, write_index
from parrot_dist.data.plan import CHUNK_BYTES, EpochPlan, Layout, shuffled_epoch
from parrot_dist.data.stream import READERS, Corpus, Part, RankStream, Sample, iterate
from parrot_dist.local.s3 import s3_server
from shards.tar import END, pack
from tests.benchmarks.peers import cpu_seconds, measure

LANES, BATCH, SHARDS = 16, 32, 8
WINDOW = 128  # all lanes together hold 2,048 clips, where the peers' buffers hold 1,000 in each data worker
PEERS = {"webdataset": "webdataset 1.0, curl", "streaming": "MosaicML streaming 0.13", "shar": "lhotse Shar 1.33, curl"}


@contextmanager
def server(endpoint: str | None) -> Iterator[str]:
    """The name of the server that S3 URLs lead to."""
    if endpoint:
        os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL_S3": endpoint}
        with suppress(s3client.client().exceptions.ClientError):
            s3client.client().create_bucket(Bucket="parrot")
        yield server_name(endpoint)
        return
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as local:
        os.environ |= local.env
        yield f"{server_name(local.endpoint)} (moto, no production server)"


def server_name(endpoint: str) -> str:
    try:
        answer = urllib.request.urlopen(endpoint, timeout=5)
    except urllib.error.HTTPError as refusal:
        answer = refusal
    return answer.headers.get("Server") or ("Ceph RGW" if b"anonymous" in answer.read() else "unknown")


def make_corpus(url: str, utterances: int) -> None:
    """Clips of 1 to 5 seconds, half as large as PCM, as speech is."""
    rng, rows, sizes = np.random.default_rng(0), [], {}
    for number, part in enumerate(np.array_split(np.arange(utterances), SHARDS)):
        shard, data = f"shard-{number:06d}.tar", bytearray()
        for clip in part.tolist():
            time_s = np.arange(int(rng.uniform(1, 5) * SAMPLE_RATE)) / SAMPLE_RATE
            wave = 0.3 * np.sin(2 * np.pi * rng.uniform(80, 400) * time_s) + rng.normal(0, 0.005, len(time_s))
            key, facts = f"{clip:06d}", ("joy", f"s{clip // 80}", "bench", "none")
            about = json.dumps(dict(zip(("label", "speaker", "corpus", "language"), facts, strict=True))).encode()
            sample = pack(key, {"flac": encode_flac(wave.astype(np.float32)), "json": about})
            rows.append(Row(key, shard, len(data), len(sample), len(wave), *facts))
            data += sample
        storage.write_bytes(f"{url}/{shard}", bytes(data + END))
        sizes[shard] = len(data) + len(END)
    write_index(url, rows, sizes)


def plan_epoch(layout: Layout, n: int, window: int = WINDOW) -> EpochPlan:
    return shuffled_epoch(
        layout, np.arange(n), seed=1, epoch=0, lanes=LANES, batch_size=BATCH, window=window, drop_last=False
    )


def open_corpus(url: str) -> Corpus:
    return Corpus.of(url, read_index(url), max_seconds=60)


def ours(url: str, workers: int) -> dict[str, object]:
    """What `measure` gives for this loader."""
    corpus = open_corpus(url)
    stream = RankStream(corpus, plan_epoch(corpus.layout, len(corpus.keys)), range(LANES))
    return measure(([item.row for item in step] for step in iterate(stream, workers)), len(corpus.keys))


HELD: list[bytes] = []


def fetch_share(url: str, share: int, shares: int) -> None:
    """Read every `shares`-th shard in ranges of a chunk; a process of the ceiling."""
    sizes = read_index(url).shard_sizes
    spans = [
        (s, a, min(a + CHUNK_BYTES, sizes[s]))
        for s in sorted(sizes)[share::shares]
        for a in range(0, sizes[s], CHUNK_BYTES)
    ]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda span: len(storage.read_bytes(f"{url}/{span[0]}", *span[1:])), spans))


def hold_share(url: str, share: int, shares: int) -> None:
    """Keep the FLAC of every `shares`-th utterance in memory."""
    corpus = open_corpus(url)
    HELD.clear()
    rows = np.arange(share, len(corpus.keys), shares)
    found = corpus.read(rows)
    HELD.extend(parse_members(found[row], corpus.keys[row])["flac"] for row in rows.tolist())


def decode_share(*_: object) -> None:
    """Decode what is held, as the peers do."""
    from tests.benchmarks.peers import decode

    for data in HELD:
        decode(data)


def ceiling(url: str, workers: int) -> dict[str, float]:
    """Utterances a second and CPU seconds per 1,000 of fetching alone plus decoding alone, by as many processes."""
    total, wall, cpu = len(read_index(url)), {}, {}
    pools = [ProcessPoolExecutor(1, mp_context=get_context("forkserver")) for _ in range(workers)]
    for task in (hold_share, fetch_share, fetch_share, decode_share):  # the first fetch makes the clients
        began, used = time.perf_counter(), cpu_seconds()
        for done in [pool.submit(task, url, share, workers) for share, pool in enumerate(pools)]:
            done.result()
        wall[task], cpu[task] = time.perf_counter() - began, cpu_seconds() - used
    for pool in pools:
        pool.shutdown()
    seconds, used = (cost[fetch_share] + cost[decode_share] for cost in (wall, cpu))
    return {"utterances_per_second": total / seconds, "cpu_per_1000": used / total * 1000}


def client_costs(url: str) -> dict[str, float]:
    """CPU seconds per GiB of ranges of a chunk, by s3fs and by the client that is used."""
    shard, size = next(iter(read_index(url).shard_sizes.items()))
    fs, path = storage.filesystem(f"{url}/{shard}")
    spans = [(a, a + CHUNK_BYTES) for a in range(0, size - CHUNK_BYTES, CHUNK_BYTES)] * 8
    reads = {
        "s3fs": lambda span: fs.cat_file(path, start=span[0], end=span[1]),
        "botocore": lambda span: storage.read_bytes(f"{url}/{shard}", *span),
    }
    costs = {}
    for name, read in reads.items():
        read(spans[0])
        with ThreadPoolExecutor(4) as pool:
            began = time.process_time()
            count = sum(pool.map(lambda span, read=read: len(read(span)), spans))
            costs[name] = (time.process_time() - began) / count * 2**30
    return costs


class Timed(RankStream[Sample]):
    """A stream whose data workers leave word of when they began, and of the memory they had by then."""

    def __init__(self, folder: str, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.folder = folder

    def parts(self) -> Iterator[Part]:
        facts = json.dumps([time.time(), memory("self")["Pss_Anon"]])
        Path(self.folder, str(os.getpid())).write_text(facts)
        return super().parts()


def memory(process: int | str) -> dict[str, float]:
    """MB of a process by kind; what several share counts in parts that add up to the whole."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(size) * 1024 / 1e6 for name, size, _ in (line.replace(":", "").split() for line in lines)}


def large_index(url: str, workers: int, utterances: int = 100_000) -> Iterator[str]:
    """What an index that names the shards over and over takes: seconds until the first batch, and memory."""
    corpus = open_corpus(url)
    n, layout = len(corpus.keys), corpus.layout
    copies = -(-utterances // n)
    shard = np.concatenate([layout.shard + SHARDS * copy for copy in range(copies)])
    large = Layout(shard, np.tile(layout.offset, copies), np.tile(layout.size, copies))
    corpus = Corpus(url, corpus.shards * copies, large, np.tile(corpus.keys, copies), corpus.max_samples)
    plan = plan_epoch(large, n * copies, window=256)
    with tempfile.TemporaryDirectory() as folder:
        batches, before = iterate(Timed(folder, corpus, plan, range(LANES)), workers), memory("self")["Pss_Anon"]
        next(batches)
        came = time.time()
        began = {file.name: json.loads(file.read_text()) for file in Path(folder).iterdir()}
        yield f"First batch: {came - max(start for start, _ in began.values()):.2f} s after the data workers were up."
        peaks = np.zeros(3)
        for step, _ in zip(range(3 * plan.window // plan.lane_rows), batches, strict=False):  # three windows
            if step % 4:  # looking takes time
                continue
            now = [memory("self"), *map(memory, began)]
            held = [now["Pss_Anon"] - old for now, (_, old) in zip(now[1:], began.values(), strict=True)]
            shared = sum(process["Pss_Shmem"] for process in now)
            peaks = np.maximum(peaks, [max(held), shared, now[0]["Pss_Anon"] - before])
        batches.close()  # type: ignore[attr-defined]
    window, program = np.mean(large.size) * plan.window / 1e6, np.mean([old for _, old in began.values()])
    yield f"Peak memory with {LANES} lanes and windows of {window:.1f} MB, beyond the {program:.0f} MB of a program:"
    yield f"{peaks[0]:.0f} MB in a data worker, {peaks[1]:.0f} MB shared, {peaks[2]:.0f} MB in the training process."


def planning(utterances: int = 10_000_000) -> tuple[float, float]:
    """Seconds to plan an epoch, and the peak memory of a process that does, in GB."""
    number = np.arange(utterances)
    size = np.random.default_rng(0).integers(20_000, 90_000, utterances)
    began = time.perf_counter()
    plan_epoch(Layout(number // 5_000, number % 5_000 * 90_000, size), utterances)
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def shuffle_quality(order: list[int]) -> tuple[float, float, float]:
    """|rank correlation| with the corpus; mean distance of neighbours, and pairs closer than 80 in a batch, both over
    those of a true permutation.

    The clips of a batch are used at once, so that neighbours are found with those of each batch in a random order.
    """
    rng = np.random.default_rng(0)
    used = np.concatenate([rng.permutation(batch) for batch in np.split(order, range(BATCH, len(order), BATCH))])
    ideal = rng.permutation(len(used))

    def distance(rows: np.ndarray) -> float:
        return float(np.abs(np.diff(rows)).mean())

    def close(rows: np.ndarray) -> float:
        return float(
            sum((np.abs(b[:, None] - b) < 80).sum() - len(b) for b in np.split(rows, range(BATCH, len(rows), BATCH)))
        )

    correlation = abs(np.corrcoef(used, np.arange(len(used)))[0, 1])
    return correlation, distance(used) / distance(ideal), close(used) / close(ideal)


def row(name: str, best: dict[str, float], result: dict[str, object]) -> str:
    speed, cpu = float(result["utterances_per_second"]), float(result["cpu_per_1000"])  # type: ignore[arg-type]
    cells = [name, f"{speed:.0f}", f"{speed / best['utterances_per_second']:.2f}", f"{cpu:.2f}"]
    if "order" in result:
        cells += [f"{result['first_batch']:.1f}"]
        cells += [f"{value:.2f}" for value in shuffle_quality(result["order"])]  # type: ignore[arg-type]
    return f"| {' | '.join([*cells, *['-'] * (8 - len(cells))])} |"


def run_peer(python: str, what: str, url: str, workers: int) -> dict[str, object]:
    """What a peer says; streaming's workers sometimes read a shard before it is there, so it has five tries."""
    command = [python, "-m", "tests.benchmarks.peers", what, url, str(workers)]
    for attempt in range(5):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        print(f"{what} failed, attempt {attempt + 1}", file=sys.stderr)
    raise SystemExit(f"{what} does not run")


def report(name: str, arguments: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    url, workers = f"s3://parrot/bench-{arguments.utterances}", arguments.workers
    if not storage.exists(f"{url}/index.parquet"):
        make_corpus(url, arguments.utterances)
    if arguments.peers and not storage.exists(f"{url}/mds/index.json"):
        run_peer(arguments.peers, "prepare", url, workers)
    seconds, memory = planning()
    index = read_index(url)
    hours, megabytes = index.samples.sum() / SAMPLE_RATE / 3600, sum(index.shard_sizes.values()) / 1e6
    yield f"{len(index)} clips, {hours:.1f} h, {megabytes:.0f} MB in {SHARDS} shards; {workers} data workers,"
    yield f"{os.cpu_count()} cores, which the server shares; server: {name}.\n"
    best = ceiling(url, workers)
    columns = "loader, utterances/s, of the ceiling, CPU s / 1000, first batch s, correlation, neighbours, close pairs"
    yield f"| {columns.replace(', ', ' | ')} |"
    yield "|---|---|---|---|---|---|---|---|"
    yield row("ceiling", best, dict(best))
    yield row("this one", best, ours(url, workers))
    for what, title in PEERS.items() if arguments.peers else ():
        yield row(title, best, run_peer(arguments.peers, what, url, workers))
    yield row("this one, again", best, ours(url, workers))
    yield row("ceiling, again", best, dict(ceiling(url, workers)))
    yield "\nAn index of 100,000:"
    yield from large_index(url, workers)
    yield f"\nPlanning an epoch of 10 million: {seconds:.1f} s, peak memory {memory:.2f} GB."
    costs = client_costs(url)
    yield f"Ranges of 4 MiB, CPU s per GiB: s3fs {costs['s3fs']:.2f}, botocore {costs['botocore']:.2f}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", default=os.environ.get("AWS_ENDPOINT_URL"))
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with the peers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--utterances", type=int, default=12_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = []
    with server(arguments.endpoint) as name:
        for line in report(name, arguments):
            print(line, flush=True)
            lines.append(line)
    if arguments.out:
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
