import itertools

import pytest

from bert_jax.training.footprint import ROUND_NUMBERS, largest_batch


def test_round_numbers_are_what_batches_are_chosen_of():
    assert ROUND_NUMBERS[:17] == (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40)
    assert all(b <= 1.25 * a for a, b in itertools.pairwise(ROUND_NUMBERS[7:]))


def brute_force(used, available):
    fitting = [n for n in ROUND_NUMBERS if (used(n) or available + 1) <= available]
    return max(fitting, default=0)


@pytest.mark.parametrize("first", [1, 16, 256, 3000])
@pytest.mark.parametrize("limit", [60, 99, 100, 1030, 5000, 100_000])
@pytest.mark.parametrize("refuses", [True, False])
def test_the_largest_is_found_from_anywhere(first, limit, refuses):
    tried = []

    def used(examples):
        needed = 50 + 10 * examples + (30 if examples > 8 else 0)  # not quite a line
        return None if refuses and needed > limit else needed

    def counted(examples):
        tried.append(examples)
        return used(examples)

    assert largest_batch(counted, limit, fixed=50, first=first) == brute_force(used, limit)
    assert len(set(tried)) == len(tried) <= 7


def test_a_good_guess_takes_three_compilations():
    tried = []

    def used(examples):
        tried.append(examples)
        return 1000 + 7 * examples

    assert largest_batch(used, 2000, fixed=1000, first=32) == 128
    assert tried == [32, 128, 160]
