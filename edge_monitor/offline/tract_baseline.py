"""Tracts in the region map: exact on calibration images, their live estimates on clean rows (design D8)."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
from scipy.special import log_expit

from edge_monitor.errors import InputError, ModelError
from edge_monitor.offline.backend import backend_of
from edge_monitor.offline.baselines import TINY, robust
from edge_monitor.offline.live_tracts import fit_live
from edge_monitor.offline.observe import Observed, Progress, silent
from edge_monitor.offline.tracts import TractTracer
from edge_monitor.region_map import TractBaseline
from edge_monitor.types import FloatArray, StatRow, TapSpec

FAITHFUL = 0.9
"""A tract is watched when its live estimate correlates with exact C by this much."""
ACTIVE = 0.05
"""Share of the clean frames with any drive in which a source voxel does not count as active."""


def trace_tracts(observed: Observed, progress: Progress = silent) -> TractBaseline:
    """Trace the observed images and fit the live estimates; `watch_tracts` adds the baselines.

    A transition that cannot be traced, or whose drive is beyond single precision in every image, gets no
    strengths and a line in ``problems``.
    """
    taps, images = observed.taps, observed.images
    n_voxels = [tap.n_voxels for tap in taps]
    gate = np.full((sum(n_voxels), 2), np.nan)
    strength = [np.full(a * b, np.nan) for a, b in pairwise(n_voxels)]
    fidelity = [np.full(a * b, np.nan) for a, b in pairwise(n_voxels)]
    exact: list[list[FloatArray]] = [[] for _ in strength]
    try:
        found = backend_of(observed.model_bytes).traceable(observed.model_bytes, taps, images.frames[0])
        problems = [f"{a.name} -> {b.name}: {found.problem}" for a, b in pairwise(taps)]
        if found.n_taps > 1:
            tracer = TractTracer(found.model, taps[: found.n_taps], as_written=found.as_written)
            problems[: found.n_taps - 1] = tracer.problems
            for i, frame in enumerate(images.frames):
                for matrices, matrix in zip(exact, tracer.trace(frame), strict=False):
                    if matrix is not None:
                        matrices.append(matrix)
                progress("tracts", i + 1, len(images.frames))
    except ModelError as error:  # a model that cannot be opened in parts can be watched all the same
        problems = [str(error)] * len(strength)
    counts = np.concatenate([tap.voxel_counts() for tap in taps])
    drive = 0.5 * (images.voxels[:, :, 0] + images.voxels[:, :, 1])
    mean = images.voxels[:, :, 1] / counts
    first = np.cumsum([0, *n_voxels])
    for k, matrices in enumerate(exact):
        if problems[k]:
            continue
        source, target = (slice(*first[place : place + 2]) for place in (k, k + 1))
        try:
            live = fit_live(np.stack(matrices), drive[:, source], mean[:, target])
        except InputError as error:
            problems[k] = f"{taps[k].name} -> {taps[k + 1].name}: {error.problem}"
            continue
        gate[target] = live.gate
        strength[k], fidelity[k] = live.strength.ravel(), live.fidelity.ravel()
    nothing = np.full(sum(a * b for a, b in pairwise(n_voxels)), np.nan)
    return TractBaseline(
        strength=np.concatenate(strength),
        fidelity=np.concatenate(fidelity),
        gate=gate,
        median=nothing,
        scale=nothing,
        active=np.full(sum(n_voxels), np.nan),
        problems=tuple(problems),
        images=len(images.frames),
    )


def watch_tracts(traced: TractBaseline, taps: tuple[TapSpec, ...], rows: list[StatRow]) -> TractBaseline:
    """Add what clean rows say: when a source voxel is active, and the normal range of its live tracts then.

    A tract whose live estimate is not faithful (`FAITHFUL`), that carries nothing, or whose source never
    speaks gets no scale: it is not watched. Without a row that tells about all taps none is.
    """
    blocks = [row.spatial for row in rows if row.spatial is not None and row.spatial.taps.all()]
    median, scale = np.full((2, traced.strength.size), np.nan)
    if not blocks:
        silent_sources = np.full(len(traced.gate), np.nan)
        return msgspec.structs.replace(traced, median=median, scale=scale, active=silent_sources)
    sums = np.stack([block.voxels / block.frames for block in blocks])
    counts = np.concatenate([tap.voxel_counts() for tap in taps])
    positive = 0.5 * (sums[:, :, 0] + sums[:, :, 1])
    heard = positive > TINY
    drive = np.log(np.maximum(positive, TINY))
    active = np.array(
        [np.quantile(x[on], ACTIVE) if on.any() else np.nan for x, on in zip(drive.T, heard.T, strict=True)]
    )
    drive[~(drive >= active)] = np.nan  # the device looks at active sources alone
    openness = log_expit(traced.gate[:, 0] + traced.gate[:, 1] * sums[:, :, 1] / counts)
    watched = (traced.fidelity >= FAITHFUL) & (traced.strength > 0)
    source, start = 0, 0
    for a, b in pairwise(taps):
        n = a.n_voxels * b.n_voxels
        target = source + a.n_voxels
        logs = drive[:, source:target, None] + openness[:, None, target : target + b.n_voxels]
        part = slice(start, start + n)
        median[part], scale[part] = robust(logs.reshape(len(blocks), n))
        source, start = target, start + n
    scale[~watched] = np.nan
    return msgspec.structs.replace(traced, median=median, scale=scale, active=active)
