"""The order of the data: exact shares, no repeats within an epoch, every epoch and seed its own order."""

from __future__ import annotations

import numpy as np
import pytest

from gpt3_jax.data.mixture import Mixture, integer_weights, permute
from gpt3_jax.errors import UserError

# GPT-3, Table 2.2: the mixture weights, which sum to 101 %.
PAPER = (0.60, 0.22, 0.08, 0.08, 0.03)


@pytest.mark.parametrize(
    "weights",
    [
        PAPER,
        (1.0,),
        (1.0, 1.0),
        (0.9,) + (0.001,) * 100,
        (0.3, 0.3) + (0.004,) * 100,
        (7, 5, 3, 2, 1, 1),
        (0.4512, 0.1234, 0.4254),
        (1e-05, 1.0),
    ],
)
def test_every_prefix_holds_each_share_to_within_one_sequence(weights: tuple[float, ...]) -> None:
    mixture = Mixture(weights, [1000] * len(weights), seed=0)
    shares = np.array(weights, np.longdouble) / np.sum(np.array(weights, np.longdouble))
    for first in (0, 150_000_000 // mixture.period * mixture.period):
        n = min(2 * mixture.period + 7, 50_000)
        draw = mixture.draw(np.arange(first, first + n))
        counts = np.cumsum(draw.source[:, None] == np.arange(len(weights)), axis=0)
        before = np.round(first * shares)  # exact: `first` is a whole number of periods
        expected = np.arange(first + 1, first + n + 1)[:, None] * shares
        assert np.abs(before + counts - expected).max() < 1


def test_counts_go_on_without_gaps_far_out() -> None:
    mixture = Mixture(PAPER, [10**9] * 5, seed=3)
    n = 150_000_000
    draw = mixture.draw(np.arange(n, n + 1000))
    for source, share in enumerate(np.array(PAPER) / 1.01):
        nth = draw.rank[draw.source == source]
        assert (np.diff(nth) == 1).all()
        assert abs(nth[0] - n * share) <= 1


def test_no_sequence_repeats_within_an_epoch_and_epochs_cover_the_source() -> None:
    sizes = [1, 7, 101, 333]
    mixture = Mixture((4, 3, 2, 1), sizes, seed=5)
    draw = mixture.draw(np.arange(40_000))
    for source, size in enumerate(sizes):
        mine = draw.source == source
        epochs, sequences = draw.epoch[mine], draw.sequence[mine]
        assert (np.diff(epochs) >= 0).all()
        for epoch in range(int(epochs[-1])):
            assert sorted(sequences[epochs == epoch]) == list(range(size))
        last = sequences[epochs == epochs[-1]]
        assert len(set(last)) == len(last)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 10, 99, 1000, 65_537])
def test_permute_is_a_permutation(size: int) -> None:
    for key in (0, 1, 2**64 - 1):
        order = permute(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
        assert (np.sort(order) == np.arange(size)).all()


def test_orders_of_epochs_seeds_and_sources_are_unrelated() -> None:
    size = 20_000

    def order(seed: int, source: int, epoch: int) -> np.ndarray:
        draw = Mixture((1, 1), (size, size), seed).draw(np.arange(2 * size * epoch, 2 * size * (epoch + 1)))
        return draw.sequence[draw.source == source]

    orders = [order(*key) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (2**63 - 1, 0, 0))]
    for i, one in enumerate(orders):
        # 4 standard deviations of a random order's correlations.
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 4 / size**0.5
        assert abs(np.corrcoef(one, np.arange(size))[0, 1]) < 4 / size**0.5
        for other in orders[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / size**0.5
            assert (one == other).sum() < 10


def test_lag_one_autocorrelation_has_no_bias_over_keys() -> None:
    size, keys = 1000, 200
    lags = []
    for key in range(keys):
        order = Mixture((1,), (size,), key).draw(np.arange(size)).sequence
        lags.append(np.corrcoef(order[1:], order[:-1])[0, 1])
    assert abs(np.mean(lags)) < 4 / (size * keys) ** 0.5 + 1 / size
    assert np.std(lags) < 1.3 / size**0.5


def test_any_index_alone_gives_what_a_range_gives() -> None:
    mixture = Mixture(PAPER, (11, 300, 5, 70, 2), seed=9)
    n = np.array([0, 5, 150_000_000, 149_999_999, 2**40, 77])
    together = mixture.draw(n)
    for row, index in enumerate(n):
        alone = mixture.draw(np.array([index]))
        assert alone.source[0] == together.source[row]
        assert alone.sequence[0] == together.sequence[row]


def test_the_order_is_the_published_one() -> None:
    draw = Mixture((3, 1), (10, 10), seed=42).draw(np.arange(12))
    # A change here reshuffles every run that is resumed: it needs a note for users, not a new golden.
    assert draw.source.tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert draw.sequence.tolist() == [5, 0, 6, 5, 8, 1, 9, 2, 3, 4, 2, 8]


def test_weights_become_the_smallest_whole_numbers() -> None:
    assert integer_weights(PAPER) == (60, 22, 8, 8, 3)
    assert integer_weights((0.5, 0.25)) == (2, 1)
    assert integer_weights((1 / 3, 1 / 3)) == (1, 1)


@pytest.mark.parametrize(
    ("weights", "sizes", "says"),
    [
        ((0.1234567, 3.1415926), (1, 1), "for example 0.0378, 0.9622"),
        ((1.0, 0.0), (1, 1), "weight 0.0"),
        ((float("nan"),), (1,), "weight nan"),
        ((1.0,), (0,), "0 sequences"),
        ((), (), "at least one"),
    ],
)
def test_unusable_mixtures_are_refused(weights: tuple[float, ...], sizes: tuple[int, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Mixture(weights, sizes, seed=0)
