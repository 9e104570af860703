"""Sampled Shapley values against enumeration, another implementation, and what theory says of them."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_monitor.errors import InputError
from edge_monitor.offline import shapley
from edge_monitor.offline.shapley import ShapleySampler, ShapleySettings

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from _study_exact import exact


class RandomGame:
    """Any payoff for any coalition and image; counts how often it is asked."""

    def __init__(self, n_players, n_images, seed):
        rng = np.random.default_rng(seed)
        self.payoffs = rng.normal(size=(2**n_players, n_images)).cumsum(axis=0)
        self.weights = 2 ** np.arange(n_players)
        self.asked = []

    def __call__(self, coalition):
        index = int(self.weights @ coalition)
        self.asked.append(index)
        return self.payoffs[index]


def run(value, n_players, each=map, **options):
    return finish(ShapleySampler(value, n_players, ShapleySettings(**options), each=each))


def finish(sampler):
    while sampler.step():
        pass
    return sampler.result()


def same(a, b):
    for field in a.__struct_fields__:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


def test_enumeration_of_games_solved_by_hand():
    """Glove game (one left, two right): 2/3, 1/6, 1/6. A majority of three with weights 2, 1, 1: the same."""
    np.testing.assert_allclose(exact(lambda s: np.array([s[0] and (s[1] or s[2])]), 3), [2 / 3, 1 / 6, 1 / 6])
    np.testing.assert_allclose(
        exact(lambda s: np.array([2 * s[0] + s[1] + s[2] > 2]), 3), [2 / 3, 1 / 6, 1 / 6]
    )
    np.testing.assert_allclose(exact(lambda s: np.array([s @ [3.0, -1.0]]), 2), [3, -1])


@pytest.mark.parametrize("n_players", [1, 2, 5, 8])
def test_within_standard_errors_of_enumeration(n_players):
    game = RandomGame(n_players, 7, seed=n_players)
    truth = exact(game, n_players)
    apart = []
    for seed in range(50):
        found = run(game, n_players, pairs=32, seed=seed)
        apart.append(np.abs(found.theta - truth) / np.maximum(found.stderr, 1e-6 / 3))
    assert np.mean(np.array(apart) <= 3) >= 0.97
    assert np.max(apart) <= 6


def test_standard_error_is_the_spread_over_seeds():
    game = RandomGame(6, 3, seed=0)
    results = [run(game, 6, pairs=16, seed=seed) for seed in range(300)]
    spread = np.std([r.theta for r in results], axis=0)
    claimed = np.sqrt(np.mean([r.stderr**2 for r in results], axis=0))
    np.testing.assert_allclose(claimed, spread, rtol=0.15)


def test_reverses_cancel_what_depends_on_the_place_alone():
    """In this game a player adds what its place in the order says: each pair gives the exact values."""
    found = run(lambda s: np.array([float(s.sum()) ** 2]), 9, pairs=2)
    np.testing.assert_allclose(found.theta, 9.0, rtol=1e-12)
    np.testing.assert_allclose(found.stderr, 0.0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    n_players=st.integers(1, 7), n_images=st.integers(1, 5), pairs=st.integers(2, 6), seed=st.integers(0, 99)
)
def test_values_add_up_to_what_there_is_to_share(n_players, n_images, pairs, seed):
    game = RandomGame(n_players, n_images, seed)
    found = run(game, n_players, pairs=pairs, seed=seed)
    assert (found.f_none, found.f_all) == (game.payoffs[0].mean(), game.payoffs[-1].mean())
    assert found.theta.sum() == pytest.approx(found.f_all - found.f_none, abs=1e-9)
    # No coalition is valued twice, and the count is honest.
    assert found.evaluations == len(game.asked) == len(set(game.asked))


def test_dummy_gets_nothing_and_equals_get_the_same():
    def value(s):  # player 2 is never asked; 0 and 1 are interchangeable
        return np.array([5.0 * (s[0] or s[1]) + 2.0 * (s[3] and s[4])])

    found = run(value, 5, pairs=200)
    assert found.theta[2] == found.stderr[2] == 0.0
    assert abs(found.theta[0] - found.theta[1]) <= 3 * (found.stderr[0] + found.stderr[1])
    np.testing.assert_allclose(found.theta, [2.5, 2.5, 0, 1, 1], atol=0.4)


def test_error_of_the_image_set_is_that_of_a_mean():
    """With an additive game every image has its own values; the bootstrap gives sigma / sqrt(n)."""
    rng = np.random.default_rng(0)
    worth = rng.normal(size=(4, 60)) * [[1.0], [2.0], [0.0], [5.0]]
    found = run(lambda s: s @ worth, 4, pairs=2)
    np.testing.assert_allclose(found.theta, worth.mean(axis=1))
    np.testing.assert_allclose(found.stderr, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.image_stderr, worth.std(axis=1) / np.sqrt(60), rtol=0.1)
    assert np.isnan(run(lambda s: s @ worth[:, :1], 4, pairs=2).image_stderr).all()


def test_history_is_what_a_shorter_run_gives():
    game = RandomGame(5, 3, seed=1)
    found = run(game, 5, pairs=20)
    np.testing.assert_array_equal(found.history_pairs, [4, 8, 16])
    for pairs, theta in zip(found.history_pairs, found.history_theta, strict=True):
        np.testing.assert_array_equal(theta, run(game, 5, pairs=int(pairs)).theta)
    assert run(game, 5, pairs=3).history_theta.shape == (0, 5)


@pytest.mark.parametrize("stop", [0, 1, 5, 12])
def test_resumed_equals_uninterrupted(stop):
    game = RandomGame(6, 4, seed=2)
    whole = run(game, 6, pairs=12, seed=3)
    first = ShapleySampler(game, 6, ShapleySettings(pairs=12, seed=3))
    for _ in range(stop):
        assert first.step()
    asked = len(game.asked)
    second = ShapleySampler(game, 6, ShapleySettings(pairs=12, seed=3), first.arrays())
    same(finish(second), whole)
    assert len(game.asked) - asked == whole.evaluations - int(first.arrays()["evaluations"])


def test_an_interrupt_within_a_pair_leaves_the_pairs_before_it():
    game = RandomGame(6, 4, seed=2)
    whole = run(game, 6, pairs=8)
    calls = iter(range(1000))

    def interrupted(coalition):
        if next(calls) == 37:
            raise KeyboardInterrupt
        return game(coalition)

    sampler = ShapleySampler(interrupted, 6, ShapleySettings(pairs=8))
    with pytest.raises(KeyboardInterrupt):
        finish(sampler)
    resumed = ShapleySampler(game, 6, ShapleySettings(pairs=8), sampler.arrays())
    assert 0 < resumed.pairs < 8
    same(finish(resumed), whole)


def test_coalitions_may_be_valued_in_any_order_of_work():
    def backwards(function, items):
        return [function(item) for item in list(items)[::-1]][::-1]

    game = RandomGame(6, 4, seed=2)
    same(run(game, 6, pairs=8), run(game, 6, pairs=8, each=backwards))


def test_a_full_memo_changes_the_count_alone(monkeypatch):
    game = RandomGame(5, 4, seed=2)
    roomy = run(game, 5, pairs=16)
    monkeypatch.setattr(shapley, "MEMO_BYTES", 8 * 4 * 9)
    tight = run(game, 5, pairs=16)
    np.testing.assert_array_equal(tight.theta, roomy.theta)
    assert (tight.f_all, tight.f_none) == (roomy.f_all, roomy.f_none)
    assert roomy.evaluations <= 32 < tight.evaluations


def test_goes_on_until_the_error_is_small_enough():
    game = RandomGame(6, 4, seed=5)
    first = run(game, 6, pairs=4)
    bound = float(first.stderr.max()) / 3
    found = run(game, 6, pairs=4, max_stderr=bound)
    assert found.pairs > 4
    assert found.stderr.max() <= bound
    assert run(game, 6, pairs=found.pairs - 1).stderr.max() > bound
    assert run(game, 6, pairs=9, max_stderr=1e9).pairs == 9


def test_the_bound_on_evaluations_is_kept():
    game = RandomGame(8, 2, seed=5)
    found = run(game, 8, pairs=128, max_evals=100)
    assert 100 - 2 * 7 < found.evaluations <= 100
    assert 2 <= found.pairs < 128
    assert run(game, 8, pairs=2, max_evals=30).pairs == 2  # 30: the least that is accepted


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"pairs": 1}, "pairs: is 1, a standard error needs at least 2"),
        ({"max_stderr": 0.0}, "max_stderr: is 0.0, must be positive"),
        ({"max_stderr": np.nan}, "max_stderr: is nan"),
        ({"max_evals": 29}, "max_evals: is 29, two pairs over 8 players need 30"),
        ({"seed": -1}, "seed: is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, problem):
    with pytest.raises(InputError, match=problem):
        run(RandomGame(8, 1, 0), 8, **options)


def test_no_players():
    with pytest.raises(InputError, match="players: none given"):
        ShapleySampler(lambda _: np.zeros(1), 0, ShapleySettings())
