"""What the study found: values with their intervals over seeds, as they are printed and drawn."""

from __future__ import annotations

import msgspec
from _cifar10_measure import Effort

from edge_monitor.types import TapSpec


class Interval(msgspec.Struct, frozen=True):
    """Mean over seeds with its 95 % interval, mean ± half (Student's t); NaN where not known.

    ``seeds``: the value of each seed.
    """

    mean: float
    half: float
    seeds: tuple[float, ...]


class Signature(msgspec.Struct, frozen=True):
    """Band signature of one tap: log10 power per band, and the share of windows that it names."""

    tap: str
    log10_power: dict[str, Interval]
    named: Interval


class Mix(msgspec.Struct, frozen=True):
    """How one tap spends its time in one condition."""

    condition: str
    tap: str
    shares: dict[str, Interval]


class Telling(msgspec.Struct, frozen=True):
    """Conditions told from states alone.

    ``counts`` of clips: a row each true condition, a column each said one, in the order of `CONDITIONS`.
    ``right``: share of clips with the right condition; ``right_kind``: when only idle, active and
    corrupted are told apart. ``own_seed``: with a single seed there is no other one to learn from.
    """

    counts: tuple[tuple[int, ...], ...]
    right: Interval
    right_kind: Interval
    own_seed: bool


class VoxelImpact(msgspec.Struct, frozen=True):
    """Impact of one voxel; errors of sampling and of the choice of images are means over seeds."""

    tap: str
    place: str
    theta: Interval
    sampling_error: float
    image_error: float


class Curve(msgspec.Struct, frozen=True):
    """Deletion of one tap's voxels in one order: area under the curve, and mean accuracy at every step."""

    tap: str
    order: str
    area: Interval
    accuracy: tuple[Interval, ...]


class DeletionMean(msgspec.Struct, frozen=True):
    """Area under the deletion curve of one order, mean over taps, and that of theta less it."""

    order: str
    area: Interval
    theta_less: Interval


class TractSummary(msgspec.Struct, frozen=True):
    """Tracts of one transition.

    ``strongest_share``: of the sum of C, what the strongest tenth of the tracts carries. ``same_seeds``:
    correlation of the strengths between two seeds, mean over pairs. ``fidelity``: median correlation of
    the live estimate with exact C on frames not fitted; ``reliable``: share of tracts from 0.9 on.
    ``strength`` and ``tract_fidelity``: mean over seeds of every tract, a row each source voxel.
    """

    transition: str
    problem: str
    tracts: int
    strongest_share: Interval
    same_seeds: float
    fidelity: Interval
    reliable: Interval
    strength: tuple[tuple[float, ...], ...]
    tract_fidelity: tuple[tuple[float, ...], ...]


class TermLevel(msgspec.Struct, frozen=True):
    """One term of the cross-modal consistency in one condition.

    ``area``: probability that a clip of the clean moving camera has the larger value than one of this
    condition (area under the ROC curve; 0.5 says nothing). ``separates``: its interval leaves out
    0.5; None with too few seeds to say.
    """

    condition: str
    term: str
    level: Interval
    area: Interval
    separates: bool | None


class Study(msgspec.Struct, frozen=True):
    """Everything, in the order of the page."""

    world: str
    seeds: tuple[int, ...]
    effort: Effort
    taps: tuple[TapSpec, ...]
    signatures: tuple[Signature, ...]
    states: tuple[Mix, ...]
    telling: Telling
    impact: tuple[VoxelImpact, ...]
    deletion: tuple[Curve, ...]
    deletion_means: tuple[DeletionMean, ...]
    tracts: tuple[TractSummary, ...]
    crossmodal: tuple[TermLevel, ...]
