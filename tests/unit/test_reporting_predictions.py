from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from parrot_dist.reporting.predictions import predictions_table, to_parquet

CLASSES = ["anger", "neutral", "sadness"]


def table(order):
    """Four utterances, given in `order`."""
    keys = np.array(["a", "b", "c", "d"])[order]
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]], np.float32)[order]
    labels = np.array([0, 1, 1, 2])[order]
    speakers = np.array(["s1", "s1", "s2", "s2"])[order]
    return predictions_table(keys, speakers, ["de"] * 4, ["spoken"] * 4, labels, probabilities, CLASSES)


def test_parquet_says_who_was_taken_for_what():
    rows = pq.read_table(io.BytesIO(to_parquet(table([0, 1, 2, 3])))).to_pylist()
    assert [row["key"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["label"] for row in rows] == ["anger", "neutral", "neutral", "sadness"]
    assert [row["prediction"] for row in rows] == ["anger", "neutral", "sadness", "anger"]
    assert rows[2]["probabilities"] == pytest.approx({"anger": 0.2, "neutral": 0.2, "sadness": 0.6})
    assert rows[3]["speaker"] == "s2"


def test_the_order_in_which_utterances_came_leaves_no_trace():
    assert to_parquet(table([2, 0, 3, 1])) == to_parquet(table([0, 1, 2, 3]))


def test_probabilities_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="1 utterances by 3 classes"):
        predictions_table(["a"], ["s"], ["de"], ["c"], np.array([0]), np.ones((1, 2), np.float32), CLASSES)
