"""The region map: what calibration learned about one model. `edge_monitor.map_file` loads and saves it."""

from __future__ import annotations

import hashlib
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import MapError
from edge_monitor.types import FloatArray, TapSpec

PACKAGES = {
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
    "litert": ("ai-edge-litert",),
    "tflite": ("tflite-runtime",),
}
"""Packages of each runtime; vendors ship builds of ONNX Runtime under other names."""


def _runtime_version(runtime: str) -> str:
    """Name and version of the package that is installed."""
    for name in PACKAGES[runtime]:
        with suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return f"{PACKAGES[runtime][0]}, version unknown"


class Runtime(msgspec.Struct, frozen=True):
    """Versions that produced a part of the map."""

    runtime: str
    machine: str
    python: str
    numpy: str
    numba: str

    @classmethod
    def here(cls, runtime: str = "onnx") -> Runtime:
        """Versions of this interpreter and machine; imports nothing heavy to learn them.

        ``runtime``: which one runs the model, a key of `PACKAGES`.
        """
        return cls(
            runtime=_runtime_version(runtime),
            machine=platform.machine(),
            python=platform.python_version(),
            numpy=np.__version__,
            numba=version("numba"),
        )


class Provenance(msgspec.Struct, frozen=True):
    """Where the map comes from.

    ``workstation`` calibrated it; ``device`` recorded the rows its baselines come from (the same
    when calibration ran the model itself), from ``source``; ``workstation_source`` is where the clean
    frames of the workstation's part came from, "" when that is the same. ``frames_fit`` and
    ``frames_held_out`` are disjoint.
    """

    model: str
    model_sha256: str
    source: str
    seed: int
    frame_rate_hz: float
    frames_fit: int
    frames_held_out: int
    workstation: Runtime
    device: Runtime
    workstation_source: str = ""
    warnings: tuple[str, ...] = ()


class EegBaseline(msgspec.Struct, frozen=True, eq=False):
    """Clean band powers. All arrays (n_taps, n_bands) float64 unless said otherwise.

    ``floor`` is added before the logarithm (signal units squared); ``mean`` and ``scale`` are median and
    1.4826 MAD of log(power + floor), NaN where the band is unobservable or dead. ``profile_mean`` and
    ``profile_covariance`` (n_taps, n_bands, n_bands): the layer's signature, mean and covariance over 10 s
    windows of log power. ``state_mix`` (n_taps, n_states): share of clean frames per state.
    ``profile_accuracy``: share of held-out 10 s windows whose nearest profile is the right layer, None when
    there was no such window. ``line_level`` (n_taps, n_bins): clean mean of the log density in which lines
    are sought, plus a floor; ``line`` (n_taps, 3): that floor, median and 1.4826 MAD of the peak over the
    floor of the spectrum, NaN where it never varied.
    """

    scale_mode: str
    floor: FloatArray
    mean: FloatArray
    scale: FloatArray
    profile_mean: FloatArray
    profile_covariance: FloatArray
    state_mix: FloatArray
    profile_accuracy: float | None
    line_level: FloatArray
    line: FloatArray


class FmriBaseline(msgspec.Struct, frozen=True, eq=False):
    """Clean voxel densities: median and 1.4826 MAD, (n_voxels,) float64.

    A voxel that never varied in calibration has scale NaN: it yields no z. ``floor`` (n_voxels,): NaN for a
    tap's voxels, which have the density of D2; for the input's, whose density is the log level
    ``log(mean|a| + floor)``, a small share of the clean level. ``bright`` (n_voxels,): mean a of the
    input's voxels from which they count as next to full scale, NaN for the others. ``dead_rows``: so
    many rows carry nothing in clean pictures (`Vitals.dead_rows`), as padding does; more of them are a fault.
    """

    median: FloatArray
    scale: FloatArray
    floor: FloatArray
    bright: FloatArray
    dead_rows: int


class FaultHead(msgspec.Struct, frozen=True, eq=False):
    """Network that tells faults from clean driving and from one another (design section 6).

    One hidden layer. Its inputs are listed in `edge_monitor.fault_head`; `kernels.perceptron.squash` bounds
    them after ``mean`` and ``scale`` (n_inputs,). ``hidden`` (n_inputs + 1, n_hidden) and ``output``
    (n_hidden + 1, 1 + n_faults) float64: weights, the last row the bias; output 0 is clean driving, the
    others are ``names``. ``accuracy``: share of faults named right among those of drives that it was not
    trained on, None when there were none.
    """

    names: tuple[str, ...]
    mean: FloatArray
    scale: FloatArray
    hidden: FloatArray
    output: FloatArray
    accuracy: float | None


class Impact(msgspec.Struct, frozen=True, eq=False):
    """What each voxel is worth for the result: Shapley-style impact scores (design D7).

    ``theta``, ``stderr`` and ``image_stderr`` (n_voxels,) float64, in units of the payoff, NaN for the
    input's voxels, which are no players. ``stderr`` is that of the sampled permutation pairs with
    the images fixed, ``image_stderr`` that of the choice of images (bootstrap; NaN with one image).
    ``f_all``, ``f_none`` and ``pairs`` (n_taps - 1,) float64: payoff of the whole and of the wholly ablated
    tap, and antithetic pairs drawn. ``history_pairs`` (n_points,) and ``history_theta``
    (n_points, n_voxels): theta as it stood after so many pairs.
    """

    theta: FloatArray
    stderr: FloatArray
    image_stderr: FloatArray
    f_all: FloatArray
    f_none: FloatArray
    pairs: FloatArray
    history_pairs: FloatArray
    history_theta: FloatArray
    payoff: str
    images: int
    evaluations: int
    seed: int


class TractBaseline(msgspec.Struct, frozen=True, eq=False):
    """How voxels of one tap drive those of the next: structural tracts (design D8).

    A transition leads from one tap to the next. Arrays of shape (n_tracts,) float64 hold one matrix
    (source voxel, target voxel) per transition, flattened row by row, one transition after the other.

    ``strength``: mean exact C over the calibration images, NaN where the transition cannot be traced.
    ``fidelity``: correlation of the live estimate with exact C on images that were not fitted; NaN where
    there is nothing to correlate. ``gate`` (n_voxels, 2): alpha and beta of every target voxel, NaN for
    the input's voxels. ``median`` and ``scale``: of ``log r(g) + log sigma(alpha_h + beta_h mean a(h))`` on
    clean rows (kappa is a constant there and cancels); scale NaN means that the tract is not watched.
    ``active`` (n_voxels,): log r from which a source voxel counts as active. ``problems``: why a transition
    cannot be traced, "" where it can, one per transition. ``images``: how many were traced.
    """

    strength: FloatArray
    fidelity: FloatArray
    gate: FloatArray
    median: FloatArray
    scale: FloatArray
    active: FloatArray
    problems: tuple[str, ...]
    images: int


class ResidualBaseline(msgspec.Struct, frozen=True, eq=False):
    """How the features of one tap follow from those of the tap before it: functional residual (D10).

    Features of a tap are the mean |a| of its channel groups, then of its voxels (`TapSpec.n_features`);
    arrays of shape (n_features,) float64 hold all taps, one after the other. ``floor`` is added before the
    logarithm; ``low`` and ``high`` bound a log feature before it predicts. ``weights``: for each tap a
    matrix of (2 m + 1, own features), m features of the tap before, flattened row by row: weights of the
    bounded log features, of the same on a linear scale, and the constant; tap 0 has the constant alone.
    ``whitening``: for each tap a matrix (own features, own features) that turns a smoothed residual into
    directions whose root of summed squares is 1 at the most that calibration saw; ``shift``: the same for
    the input's smoothed residuals less their slow mean. ``limit`` (n_features,): smoothed residual at which
    one feature is out of its calibrated range.
    """

    floor: FloatArray
    low: FloatArray
    high: FloatArray
    weights: FloatArray
    whitening: FloatArray
    shift: FloatArray
    limit: FloatArray


class EvidenceNull(msgspec.Struct, frozen=True, eq=False):
    """Null distribution and threshold of every evidence channel.

    ``quantiles`` (n_channels, n_points): clean scores at the tail probabilities ``tail`` (n_points,)
    from 1 down to 0.005; ``excess`` (n_channels,): scale of the exponential beyond. ``threshold``
    (n_channels, 2): surprise in nats at which the channel alarms, and at which it does while the picture is
    overexposed; NaN switches the channel off. ``alarms_per_hour``: the budget the thresholds were set for.
    ``held_out_alarms`` counts alarms on held-out clean frames, ``held_out_hours`` their length; on
    ``judge_hours`` of clean frames that tuned nothing, ``judge_alarms`` were raised.
    """

    tail: FloatArray
    quantiles: FloatArray
    excess: FloatArray
    threshold: FloatArray
    alarms_per_hour: float
    held_out_alarms: int
    held_out_hours: float
    judge_alarms: int
    judge_hours: float


class CrossmodalNull(msgspec.Struct, frozen=True):
    """Clean reference of the consistency score.

    Mean coherence of clean data; the anomaly scores from which a view sees an error; the agreement that
    clean data never falls below.
    """

    coherence_bias: float
    temporal_error: float
    spatial_error: float
    least_agreement: float


class Golden(msgspec.Struct, frozen=True, eq=False):
    """Frames with known answers.

    ``frames`` (n, ...) in the model's input dtype, without the batch axis; ``outputs``
    (n, n_outputs) float64, all outputs flattened; ``signals`` (n, n_taps) float64: the signature.
    ``tolerance``: largest absolute difference of outputs that still counts as the same answer.
    """

    frames: NDArray[Any]
    outputs: FloatArray
    signals: FloatArray
    tolerance: float


class TapNeutrality(msgspec.Struct, frozen=True):
    """One tap beside the same runtime's model that ends there (design section 4).

    ``dtype``: of the tensor as the runtime stores it. ``max_difference``: largest absolute difference over
    all frames, in units of the stored tensor, infinite where just one is a number; None when the two could
    not be compared, ``reason`` says why then, and ``dtype`` is empty. ``signature``: mean over the frames of
    the tap's mean |a|, which the self-test compares frame by frame (`Golden.signals`). ``reading``: how the
    tap is read (`edge_monitor.observer.Observer.readings`), empty in maps that do not say it.
    """

    name: str
    dtype: str
    max_difference: float | None
    tolerance: float
    signature: float
    reason: str = ""
    reading: str = ""

    @property
    def verdict(self) -> str:
        return _verdict(self.max_difference, self.tolerance)

    @property
    def problem(self) -> str:
        """What speaks against the tap, "" when nothing does."""
        if self.max_difference is None:
            return f"tap {self.name} could not be compared: {self.reason}"
        if self.max_difference <= self.tolerance:
            return ""
        return (
            f"tap {self.name} differs by {self.max_difference:.3g} from the model that ends there, "
            f"tolerated are {self.tolerance:.3g}"
        )


class Neutrality(msgspec.Struct, frozen=True):
    """Neutrality certificate: the tapped model beside the untapped one, on one runtime (design section 4).

    ``runtime``: package and version; ``provider``: execution provider or delegate. ``max_difference``:
    largest absolute difference of answers over ``frames`` frames, infinite where just one is a number, and
    None when they could not be compared. ``taps``: the tapped tensors, none when the probe did not attach.
    ``problems``: what speaks against it, one line each; a neutral probe has none.
    """

    runtime: str
    provider: str
    frames: int
    max_difference: float | None
    tolerance: float
    taps: tuple[TapNeutrality, ...]
    problems: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Of the answers alone."""
        return _verdict(self.max_difference, self.tolerance)


def _verdict(difference: float | None, tolerance: float) -> str:
    if difference is None:
        return "not compared"
    if difference == 0:
        return "equal"
    return "equal within rounding" if difference <= tolerance else "differs"


class RegionMap(msgspec.Struct, frozen=True, eq=False):
    """Everything calibration knows; see the sections."""

    provenance: Provenance
    taps: tuple[TapSpec, ...]
    eeg: EegBaseline
    fmri: FmriBaseline
    tracts: TractBaseline
    residual: ResidualBaseline
    evidence: EvidenceNull
    crossmodal: CrossmodalNull
    golden: Golden
    neutrality: Neutrality
    impact: Impact | None = None
    faults: FaultHead | None = None

    @property
    def theta(self) -> FloatArray:
        """Impact of every voxel, (n_voxels,) float64; uniform until it was computed."""
        return np.ones(self.fmri.median.size) if self.impact is None else self.impact.theta

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the model's input without the batch axis, before any stride."""
        return self.golden.frames.shape[1:]

    def require_model(self, data: bytes, name: str) -> None:
        """Refuse a model file that is not the calibrated one.

        Raises
        ------
        MapError
            The SHA-256 of ``data`` is another.
        """
        expected, found = self.provenance.model_sha256, hashlib.sha256(data).hexdigest()
        if found != expected:
            calibrated = f"{self.provenance.model} (SHA-256 {expected[:12]})"
            problem = f"{name} is {found[:12]}: another model, or the same one changed or damaged"
            raise MapError("region map", f"belongs to model {calibrated}, {problem}")

    def require_frame_rate(self, rate_hz: float) -> None:
        """Refuse a stream of another rate: bands, gaps and deadlines would all be wrong.

        Raises
        ------
        MapError
            The map was calibrated at another rate.
        """
        if rate_hz != self.provenance.frame_rate_hz:
            calibrated = f"{self.provenance.frame_rate_hz:g} Hz"
            raise MapError("frame_rate_hz", f"is {rate_hz:g}, the map was calibrated at {calibrated}")
