"""Shapley values by enumeration: the truth that sampled ones are measured against."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray


def exact(value: Callable[[NDArray[np.bool_]], NDArray[np.float64]], n_players: int) -> NDArray[np.float64]:
    """Shapley values (n_players,) of the mean payoff from all 2^n coalitions.

    ``theta(g) = sum over S without g of (f(S + g) - f(S)) / (n C(n - 1, |S|))`` (Shapley 1953).
    """
    mean = {}
    for size in range(n_players + 1):
        for members in combinations(range(n_players), size):
            coalition = np.zeros(n_players, np.bool_)
            coalition[list(members)] = True
            mean[frozenset(members)] = float(value(coalition).mean())
    theta = np.zeros(n_players)
    for members, payoff in mean.items():
        for player in set(range(n_players)) - members:
            weight = n_players * comb(n_players - 1, len(members))
            theta[player] += (mean[members | {player}] - payoff) / weight
    return theta
