from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.reporting.history import EpochRecord, from_json, line, to_json

share = st.floats(0, 1)
maybe = st.none() | st.floats(0, 1e-2)
records = st.builds(
    EpochRecord,
    epoch=st.integers(1, 50),
    step=st.integers(1, 10**6),
    train_loss=st.floats(0, 9),
    val_loss=st.floats(0, 9),
    accuracy=share,
    uar=share,
    macro_f1=share,
    utterances_per_second=st.floats(0, 9999),
    data_wait=share,
    seconds=st.floats(0, 9999),
    marginal_error=maybe,
)


@given(st.lists(records, max_size=4))
def test_a_history_survives_json(history):
    assert from_json(json.loads(json.dumps(to_json(history)))) == history


@given(records, records)
def test_the_columns_of_all_epochs_stand_below_each_other(one, other):
    words = ["loss", "val ", "accuracy", "UAR", "macro-F1", "utt/s", "data wait"]
    first, second = line(one, 50), line(other, 50)
    assert [first.index(word) for word in words] == [second.index(word) for word in words]


def test_a_line_says_what_the_epoch_gave():
    record = EpochRecord(
        epoch=3,
        step=120,
        train_loss=1.23456,
        val_loss=1.5,
        accuracy=0.625,
        uar=0.6,
        macro_f1=0.5,
        utterances_per_second=123.45,
        data_wait=0.031,
        seconds=12.34,
        marginal_error=2e-7,
    )
    assert line(record, 12) == (
        "epoch  3/12  loss  1.235  val  1.500  accuracy 0.625  UAR 0.600  macro-F1 0.500"
        "    123.5 utt/s  data wait   3.1%    12.3 s  marginals 2e-07"
    )


def test_a_row_that_is_no_record_is_refused():
    with pytest.raises(TypeError):
        from_json([{"epoch": 1}])
