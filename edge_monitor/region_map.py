"""The region map: what calibration learned about one model. Load, verify, save.

One ``.npz`` file: every array under its dotted name, everything else as JSON in ``meta``. It is
loaded without pickle, and verified before anything uses it.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import MapError
from edge_monitor.types import FloatArray, TapSpec

FORMAT = 1


class Runtime(msgspec.Struct, frozen=True):
    """Versions that produced a part of the map."""

    runtime: str
    machine: str
    python: str
    numpy: str
    numba: str


class Provenance(msgspec.Struct, frozen=True):
    """Where the map comes from.

    ``workstation`` calibrated it; ``device`` recorded the rows its baselines come from (the same
    when calibration ran the model itself). ``frames_fit`` and ``frames_held_out`` are disjoint.
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
    warnings: tuple[str, ...] = ()


class EegBaseline(msgspec.Struct, frozen=True, eq=False):
    """Clean band powers. All arrays (n_taps, n_bands) float64 unless said otherwise.

    ``floor`` is added before the logarithm (signal units squared); ``mean`` and ``scale`` are
    median and 1.4826 MAD of log(power + floor), NaN where the band is unobservable or dead.
    ``profile_mean``, ``profile_scale``: the layer's signature, mean and standard deviation over
    10 s windows of log power. ``state_mix`` (n_taps, n_states): share of clean frames per state.
    ``profile_accuracy``: share of held-out 10 s windows whose nearest profile is the right layer.
    """

    scale_mode: str
    floor: FloatArray
    mean: FloatArray
    scale: FloatArray
    profile_mean: FloatArray
    profile_scale: FloatArray
    state_mix: FloatArray
    profile_accuracy: float


class FmriBaseline(msgspec.Struct, frozen=True, eq=False):
    """Clean voxel densities: median and 1.4826 MAD, (n_voxels,) float64; impact ``theta`` (n_voxels,).

    A voxel that never varied in calibration has scale NaN: it yields no z. Until impact scores
    were computed theta is 1 everywhere and ``theta_known`` is false.
    """

    median: FloatArray
    scale: FloatArray
    theta: FloatArray
    theta_known: bool


class EvidenceNull(msgspec.Struct, frozen=True, eq=False):
    """Null distribution and threshold of every evidence channel.

    ``quantiles`` (n_channels, n_points): clean scores at the tail probabilities ``tail`` (n_points,)
    from 1 down to 0.005; ``excess`` (n_channels,): scale of the exponential beyond. ``threshold``
    (n_channels,): surprise in nats at which the channel alarms; NaN switches the channel off.
    ``held_out_alarms`` counts alarms on held-out clean frames, ``held_out_hours`` their length.
    """

    tail: FloatArray
    quantiles: FloatArray
    excess: FloatArray
    threshold: FloatArray
    alarms_per_hour: float
    held_out_alarms: int
    held_out_hours: float


class CrossmodalNull(msgspec.Struct, frozen=True):
    """Clean reference of the consistency score: mean coherence of clean data, and what is an error."""

    coherence_bias: float
    temporal_error: float
    spatial_error: float


class Golden(msgspec.Struct, frozen=True, eq=False):
    """Frames with known answers.

    ``frames`` (n, ...) in the model's input dtype; ``outputs`` (n, n_outputs) float64, all outputs
    flattened; ``signals`` (n, n_taps) float64: the signature. ``tolerance``: largest absolute
    difference of outputs that still counts as the same answer.
    """

    frames: NDArray[Any]
    outputs: FloatArray
    signals: FloatArray
    tolerance: float


class RegionMap(msgspec.Struct, frozen=True, eq=False):
    """Everything calibration knows; see the sections."""

    provenance: Provenance
    taps: tuple[TapSpec, ...]
    eeg: EegBaseline
    fmri: FmriBaseline
    evidence: EvidenceNull
    crossmodal: CrossmodalNull
    golden: Golden
