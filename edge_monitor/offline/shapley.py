"""Shapley values of any game, estimated from random permutations in antithetic pairs (design D7).

A player's value is the mean of what it adds to those before it, over all orders in which the players
can come (Shapley, "A value for n-person games", 1953). Orders are sampled (Castro, Gómez and Tejada,
"Polynomial calculation of the Shapley value based on sampling", 2009), each together with its reverse
(Mitchell et al., "Sampling permutations for Shapley value estimation", 2022): a player that comes late
in one comes early in the other, so the errors of the two partly cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError
from edge_monitor.types import BoolArray, FloatArray, IntArray

Value = Callable[[BoolArray], FloatArray]
"""Payoff of every image, (n_images,), with one coalition of players, (n_players,)."""

Each = Callable[[Value, Iterable[BoolArray]], Iterable[FloatArray]]
"""`map`, or a thread pool's: coalitions of one pair may be valued side by side."""

MEMO_BYTES = 64 << 20
"""Payoffs that are kept, so that no coalition is valued twice; those beyond are valued anew."""

BOOTSTRAPS = 2000
_FIRST_HISTORY = 4


class ShapleySettings(msgspec.Struct, frozen=True):
    """When to stop, and the seed.

    ``pairs`` are sampled at least, then more until the largest standard error is at most
    ``max_stderr``. ``max_evals``, the number of coalitions that may be valued, ends it earlier.

    Raises
    ------
    InputError
        Fewer than two pairs, which have no standard error; a bound that is not positive, a negative seed.
    """

    pairs: int = 128
    max_stderr: float | None = None
    max_evals: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 2:
            raise InputError("pairs", f"is {self.pairs}, a standard error needs at least 2")
        if self.max_stderr is not None and not self.max_stderr > 0:
            raise InputError("max_stderr", f"is {self.max_stderr}, must be positive")
        if self.seed < 0:
            raise InputError("seed", f"is {self.seed}, must not be negative")


class Shapley(msgspec.Struct, frozen=True, eq=False):
    """Estimated Shapley values.

    ``theta`` (n_players,) float64, in the payoff's unit, adds up to ``f_all - f_none``. ``stderr``
    (n_players,): standard error over pairs with the images fixed. ``image_stderr`` (n_players,):
    that of the choice of images, by bootstrap; NaN with one image. ``evaluations``: coalitions
    valued. ``history_theta`` (k, n_players): the estimate after ``history_pairs`` (k,) = 4, 8, 16 ...
    pairs.
    """

    theta: FloatArray
    stderr: FloatArray
    image_stderr: FloatArray
    pairs: int
    evaluations: int
    f_all: float
    f_none: float
    history_pairs: IntArray
    history_theta: FloatArray


class _State(msgspec.Struct, frozen=True, eq=False):
    """What all pairs so far amount to.

    Replaced as a whole by a single assignment: an interrupt leaves the pairs that are complete
    (test_impact.py::test_resumed_equals_uninterrupted).

    ``pair_theta`` (pairs, n_players): mean over images. ``image_total`` (n_players, n_images): sum
    over pairs. ``memo``: coalition's bytes -> (n_images,) payoffs; the empty and the full one first.
    """

    pair_theta: FloatArray
    image_total: FloatArray
    evaluations: int
    memo: dict[bytes, FloatArray]


class ShapleySampler:
    """Samples pair after pair: ``while sampler.step(): ...``, then `result`.

    Parameters
    ----------
    value : callable
        See `Value`; equal coalitions must have equal payoffs.
    n_players : int
    settings : ShapleySettings
        The permutation of pair k comes from ``default_rng([seed, k])``, so a resumed run gives the
        numbers of an uninterrupted one.
    state : mapping, optional
        `arrays` of an earlier run with the same value and settings.
    each : callable
        See `Each`.

    Raises
    ------
    InputError
        No player, or ``max_evals`` too small for the two pairs that a standard error needs.
    """

    def __init__(
        self,
        value: Value,
        n_players: int,
        settings: ShapleySettings,
        state: Mapping[str, NDArray[Any]] | None = None,
        each: Each = map,
    ) -> None:
        if n_players < 1:
            raise InputError("players", "none given")
        least = 4 * n_players - 2
        if settings.max_evals is not None and settings.max_evals < least:
            raise InputError(
                "max_evals", f"is {settings.max_evals}, two pairs over {n_players} players need {least}"
            )
        self._value, self._n, self._settings, self._each = value, n_players, settings, each
        if state is None:
            # One column stands for any number of images: the first sum broadcasts it.
            self._state = _State(np.empty((0, n_players)), np.zeros((n_players, 1)), 0, {})
        else:
            keys = (row.tobytes() for row in state["memo_coalitions"])
            memo = dict(zip(keys, state["memo_payoffs"], strict=True))
            self._state = _State(state["pair_theta"], state["image_total"], int(state["evaluations"]), memo)

    @property
    def pairs(self) -> int:
        """Pairs sampled so far."""
        return len(self._state.pair_theta)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything a later run needs to go on, as plain arrays."""
        state = self._state
        coalitions = np.frombuffer(b"".join(state.memo), np.bool_).reshape(-1, self._n)
        payoffs = np.array(list(state.memo.values())).reshape(len(coalitions), state.image_total.shape[1])
        return {
            "pair_theta": state.pair_theta,
            "image_total": state.image_total,
            "evaluations": np.array(state.evaluations),
            "memo_coalitions": coalitions,
            "memo_payoffs": payoffs,
        }

    def step(self) -> bool:
        """Sample one more pair; False, and nothing done, once the settings are satisfied."""
        state, n = self._state, self._n
        order = np.random.default_rng([self._settings.seed, self.pairs]).permutation(n)
        runs = (order, order[::-1])
        # Row j of each: the first j players of that order.
        forward, backward = (np.argsort(run) < np.arange(n + 1)[:, None] for run in runs)
        # The empty and the full coalition come first, so that the memo always holds them.
        wanted = {row.tobytes(): row for row in (forward[0], forward[n], *forward, *backward)}
        new = {key: row for key, row in wanted.items() if key not in state.memo}
        if self._is_done(len(new)):
            return False
        valued = dict(zip(new, self._each(self._value, new.values()), strict=True))
        payoffs = state.memo | valued
        added = np.zeros((n, next(iter(payoffs.values())).size))
        for run, rows in zip(runs, (forward, backward), strict=True):
            added[run] += 0.5 * np.diff([payoffs[row.tobytes()] for row in rows], axis=0)
        room = max(2, MEMO_BYTES // (8 * added.shape[1])) - len(state.memo)
        self._state = _State(
            pair_theta=np.vstack([state.pair_theta, added.mean(axis=1)]),
            image_total=state.image_total + added,
            evaluations=state.evaluations + len(valued),
            memo=state.memo | dict(islice(valued.items(), max(0, room))),
        )
        return True

    def _is_done(self, new: int) -> bool:
        """Whether to stop before a pair that takes ``new`` more evaluations."""
        pairs, max_stderr, max_evals = (
            self._settings.pairs,
            self._settings.max_stderr,
            self._settings.max_evals,
        )
        if max_evals is not None and self._state.evaluations + new > max_evals:
            return True
        if self.pairs < pairs:
            return False
        return max_stderr is None or bool(_stderr(self._state.pair_theta).max() <= max_stderr)

    def result(self) -> Shapley:
        """Estimate from the pairs so far, at least two."""
        state, pairs = self._state, self.pairs
        f_none, f_all = (float(payoffs.mean()) for payoffs in islice(state.memo.values(), 2))
        powers = 2 ** np.arange(pairs.bit_length(), dtype=np.int64)
        history = powers[(powers >= _FIRST_HISTORY) & (powers <= pairs)]
        return Shapley(
            theta=state.pair_theta.mean(axis=0),
            stderr=_stderr(state.pair_theta),
            image_stderr=_image_stderr(state.image_total / pairs, self._settings.seed),
            pairs=pairs,
            evaluations=state.evaluations,
            f_all=f_all,
            f_none=f_none,
            history_pairs=history,
            history_theta=np.array([state.pair_theta[:k].mean(axis=0) for k in history]).reshape(-1, self._n),
        )


def _stderr(pair_theta: FloatArray) -> FloatArray:
    """Return the standard error of the mean of (n_pairs, n_players), pairs being independent."""
    return np.asarray(pair_theta.std(axis=0, ddof=1) / np.sqrt(len(pair_theta)))


def _image_stderr(theta: FloatArray, seed: int) -> FloatArray:
    """Return the spread of the mean over images of (n_players, n_images), drawn anew (bootstrap)."""
    n_players, n_images = theta.shape
    if n_images < 2:
        return np.full(n_players, np.nan)
    counts = np.random.default_rng(seed).multinomial(n_images, np.full(n_images, 1 / n_images), BOOTSTRAPS)
    return np.asarray((theta @ counts.T / n_images).std(axis=1, ddof=1))
