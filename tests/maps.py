"""Region maps built by hand: right in form, true in taps and golden frames, neutral in all baselines."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from edge_monitor.band_plan import LINE_BINS
from edge_monitor.region_map import (
    CrossmodalNull,
    EegBaseline,
    EvidenceNull,
    FmriBaseline,
    Golden,
    Neutrality,
    Provenance,
    RegionMap,
    ResidualBaseline,
    Runtime,
    TapNeutrality,
    TractBaseline,
)
from edge_monitor.reports import CHANNELS, STATES
from edge_monitor.taps.onnx import find_observed_input, input_type, list_taps, open_session
from edge_monitor.taps.reducer import input_spec, tap_spec
from edge_monitor.types import BANDS, TapSpec


def minimal_map(
    model: bytes,
    taps: Sequence[str] | None = None,
    *,
    frames: np.ndarray | None = None,
    tolerance: float = 1e-5,
    frame_rate_hz: float = 30.0,
    seed: int = 0,
) -> RegionMap:
    """Map of an ONNX model.

    Golden answers and signals come from ONNX Runtime and NumPy alone. The baselines say "median 0,
    scale 1" and no evidence channel has a threshold, so nothing but guards and probe events can alarm.

    Parameters
    ----------
    model : bytes
        The model.
    taps : sequence of str, optional
        Tapped tensors; default: the suggested set.
    frames : (n, ...) float32, optional
        Golden frames without batch axis; default: three seeded ones.
    """
    names = list(taps) if taps else [tap.name for tap in list_taps(model) if tap.default]
    session = open_session(model, names, {})
    inputs = {arg.name: input_type(arg) for arg in session.get_inputs()}
    observed = find_observed_input(session)
    shape = inputs[observed][0][1:]
    if frames is None:
        frames = np.random.default_rng(seed).random((3, *shape), dtype=np.float32)
    outputs, signals = [], []
    for frame in frames:
        feed = {name: np.zeros(*kind) for name, kind in inputs.items()} | {observed: frame[None]}
        results = session.run(None, feed)
        own, tapped = results[: -len(names)], results[-len(names) :]
        outputs.append(np.concatenate([output.ravel() for output in own]))
        rows, columns = input_spec(observed, shape).step
        sampled = frame[:, ::rows, ::columns] if frame.ndim == 3 else frame
        signals.append([np.abs(tensor.astype(np.float64)).mean() for tensor in (sampled, *tapped)])
    specs = (
        input_spec(observed, shape),
        *(tap_spec(name, tensor.shape[1:]) for name, tensor in zip(names, tapped, strict=True)),
    )
    golden = Golden(
        frames=frames,
        outputs=np.array(outputs, np.float64),
        signals=np.array(signals),
        tolerance=tolerance,
    )
    return neutral_map(model, specs, golden, frame_rate_hz=frame_rate_hz, seed=seed)


def neutral_map(
    model: bytes, specs: Sequence[TapSpec], golden: Golden, *, frame_rate_hz: float = 30.0, seed: int = 0
) -> RegionMap:
    """Map of any model with neutral baselines, see `minimal_map`."""
    here = Runtime.here()
    bands = (len(specs), len(BANDS))
    n_voxels = sum(tap.n_voxels for tap in specs)
    n_channels = len(CHANNELS)
    return RegionMap(
        provenance=Provenance(
            model="model",
            model_sha256=hashlib.sha256(model).hexdigest(),
            source="built by hand",
            seed=seed,
            frame_rate_hz=frame_rate_hz,
            frames_fit=1,
            frames_held_out=0,
            workstation=here,
            device=here,
        ),
        taps=tuple(specs),
        eeg=EegBaseline(
            scale_mode="nyquist",
            floor=np.full(bands, 1e-12),
            mean=np.zeros(bands),
            scale=np.ones(bands),
            profile_mean=np.zeros(bands),
            profile_covariance=np.tile(np.eye(len(BANDS)), (len(specs), 1, 1)),
            state_mix=np.full((len(specs), len(STATES)), 1 / len(STATES)),
            profile_accuracy=0.0,
            line_level=np.zeros((len(specs), LINE_BINS)),
            line=np.tile([1e-12, 0.0, 1.0], (len(specs), 1)),
        ),
        fmri=FmriBaseline(
            median=np.zeros(n_voxels),
            scale=np.ones(n_voxels),
            floor=np.full(n_voxels, np.nan),
            bright=np.full(n_voxels, np.nan),
            dead_rows=0,
        ),
        tracts=no_tracts(specs),
        residual=no_residual(specs),
        evidence=EvidenceNull(
            tail=np.array([1.0, 0.1, 0.005]),
            quantiles=np.tile([0.0, 1.0, 2.0], (n_channels, 1)),
            excess=np.ones(n_channels),
            threshold=np.full((n_channels, 2), np.nan),
            alarms_per_hour=1.0,
            held_out_alarms=0,
            held_out_hours=0.0,
            judge_alarms=0,
            judge_hours=0.0,
        ),
        crossmodal=CrossmodalNull(
            coherence_bias=0.0, temporal_error=1.0, spatial_error=1.0, least_agreement=-np.inf
        ),
        golden=golden,
        neutrality=neutral(specs, golden),
    )


def neutral(specs: Sequence[TapSpec], golden: Golden) -> Neutrality:
    """Certificate of taps that are read without any difference."""
    signatures = np.mean(golden.signals, axis=0)[1:].tolist()
    return Neutrality(
        runtime=Runtime.here().runtime,
        provider="CPUExecutionProvider",
        frames=len(golden.frames),
        max_difference=0.0,
        tolerance=golden.tolerance,
        taps=tuple(
            TapNeutrality(tap.name, "float32", 0.0, 0.0, signature)
            for tap, signature in zip(specs[1:], signatures, strict=True)
        ),
        problems=(),
    )


def no_tracts(taps: Sequence[TapSpec]) -> TractBaseline:
    """Tracts that were never traced: none is watched."""
    n_tracts = sum(a.n_voxels * b.n_voxels for a, b in itertools.pairwise(taps))
    nothing = np.full(n_tracts, np.nan)
    n_voxels = sum(tap.n_voxels for tap in taps)
    return TractBaseline(
        strength=nothing,
        fidelity=nothing,
        gate=np.full((n_voxels, 2), np.nan),
        median=nothing,
        scale=nothing,
        active=np.full(n_voxels, np.nan),
        problems=tuple(f"{a.name} -> {b.name}: not traced" for a, b in itertools.pairwise(taps)),
        images=0,
    )


def no_residual(taps: Sequence[TapSpec]) -> ResidualBaseline:
    """Prediction "log feature 0" and whitening 0: no residual and no shift ever counts."""
    n_features = [tap.n_features for tap in taps]
    n_weights = n_features[0] + sum((2 * m + 1) * n for m, n in itertools.pairwise(n_features))
    n = sum(n_features)
    return ResidualBaseline(
        floor=np.full(n, 1e-12),
        low=np.full(n, -1.0),
        high=np.ones(n),
        weights=np.zeros(n_weights),
        whitening=np.zeros(sum(m * m for m in n_features)),
        shift=np.zeros(n_features[0] ** 2),
        limit=np.full(n, 1e12),
    )


def with_golden(region_map: RegionMap, **changes: object) -> RegionMap:
    """Return the same map with fields of its golden section replaced."""
    golden = msgspec.structs.replace(region_map.golden, **changes)
    return msgspec.structs.replace(region_map, golden=golden)
