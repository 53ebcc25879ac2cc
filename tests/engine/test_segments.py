"""Segments of a batch: every query sees what the rule says, in order, whatever the blocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention.engine.segments import split

ROW = st.tuples(st.integers(0, 60), st.integers(0, 30), st.integers(0, 80))


@settings(max_examples=400, deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=4), sinks=st.integers(0, 2), recent=st.integers(1, 4),
    granule=st.sampled_from([1, 2, 4, 8]), part=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_every_query_sees_what_the_rule_says(rows, sinks, recent, granule, part):
    size = max(1, granule // part)
    start, count, free = (np.array(column) for column in zip(*rows, strict=True))
    stop = start + count
    parts = split(start, stop, free, sinks=sinks, recent=recent, granule=granule, block_size=size)
    cursor = start.copy()
    for row, queries, length, columns in zip(parts.request, parts.queries, parts.length, parts.columns, strict=True):
        assert queries > 0
        for index in range(queries):
            at = cursor[row]
            cursor[row] += 1
            seen = [columns[n // size] * size + n % size for n in range(length - (queries - 1 - index))]
            sees = [
                key
                for key in range(at + 1)
                if at < free[row] or key < sinks * granule or key // granule > at // granule - recent
            ]
            assert seen == sees
    assert (cursor == stop).all()


def test_one_generated_token_is_one_segment():
    parts = split(*(np.array([n]) for n in (700, 701, 500)), sinks=1, recent=2, granule=32)
    assert parts.columns.tolist() == [[0, 20, 21]]
    assert parts.length.tolist() == [32 + 32 + 701 - 21 * 32]
