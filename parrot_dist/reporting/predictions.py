"""The predictions of an evaluation as Parquet, one row an utterance, for whoever wants to look closer."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def predictions_table(
    keys: Sequence[str],
    speakers: Sequence[str],
    languages: Sequence[str],
    corpora: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
) -> pa.Table:
    """One row an utterance, sorted by key, so that the order in which ranks saw them leaves no trace.

    Args:
        keys: (N,) name of each utterance in its shards.
        speakers: (N,) names.
        languages: (N,) codes.
        corpora: (N,) names.
        labels: (N,) class numbers.
        probabilities: (N, C), rows that sum to 1.
        classes: (C,) emotions in the order of the logits.

    Returns:
        Columns key, speaker, language, corpus, label, prediction (the emotion's name) and probabilities, a struct
        with one float32 field a class.

    Raises:
        ValueError: columns of unequal length, or not as many probabilities as classes.
    """
    if probabilities.shape != (len(keys), len(classes)):
        raise ValueError(
            f"probabilities {probabilities.shape} are not {len(keys)} utterances by {len(classes)} classes"
        )
    names = np.asarray(classes, dtype=object)
    values = np.asarray(probabilities, dtype=np.float32)
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "speaker": pa.array(speakers, pa.string()),
            "language": pa.array(languages, pa.string()),
            "corpus": pa.array(corpora, pa.string()),
            "label": pa.array(names[np.asarray(labels)], pa.string()),
            "prediction": pa.array(names[values.argmax(axis=1)], pa.string()),
            "probabilities": pa.StructArray.from_arrays(list(map(pa.array, values.T.copy())), names=list(classes)),
        }
    )
    return table.sort_by("key")


def to_parquet(table: pa.Table) -> bytes:
    """The Parquet bytes of `table`; the same table gives the same bytes."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()
