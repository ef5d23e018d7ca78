"""Windows over sequences: equal to the loops of google-research/bert's run_squad.py."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from bert_jax.data.windows import has_most_context, slide, slots

SEQUENCES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(1, 25)), max_size=6
)


def slid(sequences):
    return slide(*np.array(sequences, np.int64).reshape(-1, 3).T)


def reference_windows(length, room, stride):
    """(start, length) of a sequence's windows."""
    windows = [(0, min(room, length))]
    while sum(windows[-1]) < length:
        start = windows[-1][0] + min(stride, room)
        windows.append((start, min(room, length - start)))
    return windows


@given(SEQUENCES)
@example([(0, 1, 1)])
def test_windows_cover_every_token(sequences):
    windows = slid(sequences)
    expected = [
        (number, *window)
        for number, sequence in enumerate(sequences)
        for window in reference_windows(*sequence)
    ]
    assert list(zip(*(part.tolist() for part in windows), strict=True)) == expected
    for number, (length, room, _) in enumerate(sequences):
        mine = windows.sequences == number
        assert (windows.lengths[mine] <= room).all()
        covered = {
            token
            for start, size in zip(windows.starts[mine], windows.lengths[mine], strict=True)
            for token in range(start, start + size)
        }
        assert covered == set(range(length))


@given(SEQUENCES)
@example([(11, 6, 1)])
def test_every_token_has_one_window_with_most_context(sequences):
    windows = slid(sequences)
    window, place = slots(windows)
    chosen = has_most_context(windows)
    assert len(chosen) == windows.lengths.sum()
    choice = {
        (windows.sequences[w], windows.starts[w] + p): w
        for w, p in zip(window[chosen], place[chosen], strict=True)
    }
    assert len(choice) == chosen.sum() == sum(length for length, _, _ in sequences)
    for (sequence, token), chosen_window in choice.items():
        scores = {}
        for w in np.flatnonzero(windows.sequences == sequence):
            start, length = windows.starts[w], windows.lengths[w]
            if start <= token < start + length:
                scores[w] = min(token - start, start + length - 1 - token) + 0.01 * length
        assert chosen_window == max(scores, key=scores.__getitem__)  # the first of the best
