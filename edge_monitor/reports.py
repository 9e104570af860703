"""What the stages find in a frame, and the health report that holds all of it.

Arrays are never written after they were put into one of these. "Not known yet" is NaN in a float
array or ``None`` in a field, never 0.
"""

from __future__ import annotations

from enum import Enum, IntEnum

import msgspec

from edge_monitor.types import BoolArray, FloatArray, IntArray

STATES = ("deep processing", "memory", "idle", "active", "high-level")
"""Name of a tap's state by its dominant band, in the order of `BANDS` (design D6)."""


class HealthState(IntEnum):
    """Health of the whole monitor, worst wins (design D6)."""

    OK = 0
    WARMING = 1
    NEVER_SEEN = 2
    WARN = 3
    STALE = 4
    FAIL = 5


class FlagStatus(Enum):
    """Life cycle of one flag (design section 6)."""

    INACTIVE = "inactive"
    PENDING = "pending"
    CONFIRMED = "confirmed"
    HEALED = "healed"


class BandPowers(msgspec.Struct, frozen=True, eq=False):
    """NN-EEG of one frame.

    ``power`` (n_taps, n_bands) float64, signal units squared, NaN until the band's window is full
    and where the band is unobservable. ``z`` (n_taps, n_bands): robust z of log power against the
    calibrated baseline. ``state`` (n_taps,) int64: index into `STATES`, -1 while not warm.
    ``held`` (n_taps,) int64: samples in the longest window that were held, not measured.
    ``score``: temporal anomaly score, None while not warm. ``line`` (n_taps,): robust z of the strongest
    spectral line over the floor, NaN while not warm; ``line_score``: the largest of them. ``structure``
    (n_taps, n_lags): logarithm of how far the signal moves over some lags, NaN while not known.
    """

    power: FloatArray
    z: FloatArray
    state: IntArray
    held: IntArray
    score: float | None
    line: FloatArray
    line_score: float | None
    structure: FloatArray


class RegionScores(msgspec.Struct, frozen=True, eq=False):
    """NN-fMRI of one frame.

    ``density`` (n_voxels,) float64 (D2; the input's log level), ``z`` (n_voxels,) robust z against
    the map; NaN where the tap was masked. ``tap_score`` (n_taps,): root mean square z of the tap's
    voxels, NaN where masked. ``worst``: voxel with the largest |theta| |z|, ``severity`` that
    product. ``score``: spatial anomaly score of the network's own taps (1 and up), ``input_score``:
    of tap 0. ``bright``: share of the input's voxels next to full scale.
    """

    density: FloatArray
    z: FloatArray
    tap_score: FloatArray
    worst: int | None
    severity: float | None
    score: float | None
    input_score: float | None
    bright: float | None


class Connectivity(msgspec.Struct, frozen=True, eq=False):
    """How the layers drive one another in one frame (D8, D10).

    ``residual`` (n_taps,) float64: how far each tap is from what the tap before it predicts (tap 0: from
    its own clean level), 1 = as far as it ever was in calibration; NaN while not known. ``departure``
    (n_features,): smoothed residual of every feature, log units. ``shift`` (1 + input's features,): how far
    the input has moved from where it was in the last seconds, in the same units as ``residual``, and
    feature by feature; NaN while not known. ``tract_z`` (n_tracts,): robust z of the live tracts, NaN where
    not watched or the source is silent.

    ``alarming`` (n_voxels,) bool: voxels of taps with a residual of 1 or more that carry it. ``root``: the
    worst of them in the earliest such tap behind the input. ``under`` (n_voxels,) bool: alarming voxels to
    which strong tracts lead from the root's tap through alarming voxels; the others have causes of their own.

    ``weakest``: source and target voxel of the tract with the lowest z. ``residual_score``, ``shift_score``
    and ``tract_score``: largest residual of the network's own taps, the input's shift, and how far the
    weakest tract lies below its baseline, in sigmas; None while not known.
    """

    residual: FloatArray
    departure: FloatArray
    shift: FloatArray
    tract_z: FloatArray
    alarming: BoolArray
    under: BoolArray
    root: int | None
    weakest: tuple[int, int] | None
    residual_score: float | None
    shift_score: float | None
    tract_score: float | None


class Vitals(msgspec.Struct, frozen=True):
    """Signs of life of the stream (design section 2).

    ``missing``: frames missing just before this one. ``repeated``: how many frames in a row had the same
    input as their predecessor; ``stale``: the same for identical activations under a changed input.
    ``rate_hz``: smoothed frame rate, None until measured. ``silence_ns``: time since the last frame (0 at a
    frame). ``age_ns``: time from the first frame to the last, on the stream's own clock. ``backwards``: the
    frame was taken before its predecessor. ``stall``: how little the scene has moved although the vehicle
    drives, in nats; None while it does not, or that is not known. ``jump``: how well the whole picture's
    displacement from one frame to the next explains its change, in nats beyond what noise may do, the most in
    the last frames; None while not known. ``dead_rows``: rows of the picture that carry nothing, flat or
    copies of the row above to the bit though not saturated; None when there is no picture.
    """

    missing: int
    repeated: int
    stale: int
    nonfinite: int
    rate_hz: float | None
    latency_ns: int
    silence_ns: int
    entropy: float | None
    confidence: float | None
    age_ns: int = 0
    backwards: bool = False
    stall: float | None = None
    jump: float | None = None
    dead_rows: int | None = None


class Consistency(msgspec.Struct, frozen=True):
    """Agreement of the two views over the window (D9); None marks an invalid term.

    ``score`` is the mean of the valid terms, ``terms`` their number. ``agreement_in_error``: the
    agreement over frames in which either view saw an error.
    """

    rho: float | None
    agreement: float | None
    agreement_in_error: float | None
    coherence: float | None
    score: float | None
    terms: int


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """One frame's score in every evidence channel; None where there is none.

    Those that detect: functional residual between layers, sudden shift of the input, spectral line
    over the floor, fault head, stalled scene, displaced scene. Those that explain: input densities,
    layer densities, band powers, output entropy, structural tracts.
    """

    residual: float | None
    shift: float | None
    line: float | None
    faults: float | None
    stall: float | None
    jump: float | None
    input: float | None
    spatial: float | None
    temporal: float | None
    output: float | None
    tracts: float | None


CHANNELS = Scores.__struct_fields__
"""Evidence channels, in the order of `Scores`."""


class Evidence(msgspec.Struct, frozen=True, eq=False):
    """Scores in one unit, channels in the order of `CHANNELS`.

    ``score`` (n_channels,): smoothed score; ``surprise`` (n_channels,): -log p under the calibrated
    null, nats; ``ratio`` (n_channels,): surprise over the channel's threshold. NaN = no evidence.
    ``overexposed``: the thresholds are those of a picture that is, or was just now, next to full scale.
    ``largest``: the largest ratio, NaN when there is none.
    """

    score: FloatArray
    surprise: FloatArray
    ratio: FloatArray
    overexposed: bool
    largest: float


class FaultGuess(msgspec.Struct, frozen=True, eq=False):
    """What the fault head takes the last frames for.

    ``score``: how much likelier a fault is than clean driving, in nats; None while not warm. ``name``:
    the likeliest fault, None when nothing fits; ``confidence``: its probability given that there is a fault.
    ``second``: the likeliest of the others.
    """

    score: float | None
    name: str | None
    confidence: float
    second: str | None


class FlagState(msgspec.Struct, frozen=True):
    """One flag: where it stands in its life cycle and why.

    ``counter`` is the fault counter, -128 ... 127. ``since_ns`` is when ``status`` last changed.
    ``cause`` names what raised it and ``values`` are the numbers that did.
    """

    code: str
    status: FlagStatus
    counter: int
    occurrences: int
    since_ns: int
    cause: str = ""
    values: dict[str, float] = {}


class Transition(msgspec.Struct, frozen=True):
    """A flag or the whole health state changed; ``code`` is the flag's or ``HEALTH``."""

    frame: int
    t_ns: int
    code: str
    before: str
    after: str
    cause: str = ""
    values: dict[str, float] = {}


class HealthReport(msgspec.Struct, frozen=True, eq=False):
    """What the monitor says after one input; ``bands`` ... ``evidence`` are None at a tick."""

    frame: int
    t_ns: int
    state: HealthState
    reasons: tuple[str, ...]
    vitals: Vitals
    flags: tuple[FlagState, ...]
    transitions: tuple[Transition, ...]
    bands: BandPowers | None = None
    regions: RegionScores | None = None
    connectivity: Connectivity | None = None
    consistency: Consistency | None = None
    evidence: Evidence | None = None
    guess: FaultGuess | None = None
