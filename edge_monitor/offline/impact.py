"""Impact: how much each voxel matters for the model's result (design D7).

The voxels of one tap are the players of a game (`Game`), and their impact scores its Shapley values.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_monitor.errors import InputError
from edge_monitor.offline.ablation import Game, value_frames, whole_answers
from edge_monitor.offline.backend import backend_of
from edge_monitor.offline.checkpoint import Checkpoint
from edge_monitor.offline.observe import Progress, silent
from edge_monitor.offline.payoff import DECISION_PROBABILITY, Payoff, accuracy
from edge_monitor.offline.shapley import Shapley, ShapleySampler, ShapleySettings
from edge_monitor.region_map import Impact, Runtime
from edge_monitor.taps.model_file import load_model, serving_runtime
from edge_monitor.types import IntArray, TapSpec


def impact_scores(
    model: Path | bytes,
    taps: tuple[TapSpec, ...],
    frames: NDArray[np.float32],
    payoff: Payoff | None = None,
    labels: IntArray | None = None,
    settings: ShapleySettings | None = None,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    threads: int | None = None,
) -> Impact:
    """Impact of every voxel of every tap.

    Parameters
    ----------
    model : Path or bytes
    taps : tuple of TapSpec
        The input first; it gets no scores.
    frames : (n, ...) float32
        Clean inputs of the model.
    payoff : Payoff, optional
        By default the accuracy when there are ``labels``, else the probability of the decision.
    labels : (n,) integers, optional
    settings : ShapleySettings, optional
        They apply to each tap by itself.
    progress : callable
        Told the pairs done of each tap.
    checkpoint : Path, optional
        Where the state is kept, every 10 s and when anything ends the run, Ctrl-C included. An existing
        one is resumed, with the same numbers as without the break. The caller removes it when the
        result is safe.
    threads : int, optional
        Coalitions valued side by side, by default one for each processor; no result depends on it.

    Returns
    -------
    Impact
        A voxel that never influences the payoff, as one with constant activations, has 0 with error 0.
        With a single frame ``image_stderr`` is NaN.

    Raises
    ------
    InputError
        Frames, labels, taps, payoff or settings that cannot be used; a checkpoint that is damaged or of
        another run, which is left as it is.
    ModelError
        The model cannot be cut, answers otherwise when it is, or its output is no probability vector
        and there is neither a payoff nor labels.
    """
    settings = settings or ShapleySettings()
    data, label = load_model(model)
    _check(taps, frames)
    if labels is not None:
        if payoff is not None:
            raise InputError("labels", f"given beside a payoff ({payoff.name}), which does not use them")
        payoff = accuracy(labels)
    payoff = payoff or DECISION_PROBABILITY
    unablated = whole_answers(data, label, frames)
    value_frames(payoff, unablated, unablated)
    store = Checkpoint(checkpoint, _identity(data, taps, frames, payoff, settings))
    for tap in taps[1:]:
        backend_of(data).cut(
            data, tap.name
        )  # what cannot be cut is refused before minutes of work on the others
    results = []
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for tap in taps[1:]:
            game = Game(data, tap, frames, payoff, unablated)
            sampler = ShapleySampler(game.value, tap.n_voxels, settings, store.states.get(tap.name), pool.map)
            total = settings.pairs if settings.max_stderr is None else None
            try:
                while sampler.step():
                    progress(f"impact of {tap.name}", sampler.pairs, total)
                    store.save_if_due(tap.name, sampler.arrays)
            finally:
                store.save(tap.name, sampler.arrays())
            results.append(sampler.result())
    return _assemble(taps[0].n_voxels, results, payoff.name, len(frames), settings.seed)


def _check(taps: tuple[TapSpec, ...], frames: NDArray[np.float32]) -> None:
    if len(taps) < 2:
        raise InputError("taps", "none besides the input; there is nothing to score")
    for tap in taps[1:]:
        if tap.n_voxels < 1:
            raise InputError(tap.name, f"has no voxels (grid {tap.grid})")
    if frames.dtype != np.float32 or frames.ndim < 2 or len(frames) == 0:
        raise InputError("frames", f"are {frames.dtype}{frames.shape}, float32 (n, ...) with n > 0 is needed")
    for i, frame in enumerate(frames):
        if not np.isfinite(frame).all():
            raise InputError("frames", f"frame {i} holds NaN or Inf; clean frames are needed")


def _identity(
    data: bytes,
    taps: tuple[TapSpec, ...],
    frames: NDArray[np.float32],
    payoff: Payoff,
    settings: ShapleySettings,
) -> dict[str, str]:
    """Return everything that the numbers depend on, by the names a message would use."""
    contiguous = np.ascontiguousarray(frames)
    return {
        "model": hashlib.sha256(data).hexdigest(),
        "taps": msgspec.json.encode(taps).decode(),
        "frames": f"{frames.shape} {hashlib.sha256(contiguous.data).hexdigest()}",
        "payoff or labels": f"{payoff.name} {payoff.digest}",
        **{name: repr(value) for name, value in msgspec.structs.asdict(settings).items()},
        "versions": repr(Runtime.here(serving_runtime(data))),
    }


def _assemble(n_input: int, results: Sequence[Shapley], payoff: str, images: int, seed: int) -> Impact:
    """Put the taps one after the other, behind the input's NaN; history is NaN where a tap had stopped."""
    none = np.full(n_input, np.nan)
    history_pairs = max((r.history_pairs for r in results), key=len)
    history = np.full((len(history_pairs), n_input + sum(r.theta.size for r in results)), np.nan)
    start = n_input
    for r in results:
        history[: len(r.history_pairs), start : start + r.theta.size] = r.history_theta
        start += r.theta.size
    return Impact(
        theta=np.concatenate([none, *(r.theta for r in results)]),
        stderr=np.concatenate([none, *(r.stderr for r in results)]),
        image_stderr=np.concatenate([none, *(r.image_stderr for r in results)]),
        f_all=np.array([r.f_all for r in results]),
        f_none=np.array([r.f_none for r in results]),
        pairs=np.array([r.pairs for r in results], np.float64),
        history_pairs=history_pairs.astype(np.float64),
        history_theta=history,
        payoff=payoff,
        images=images,
        evaluations=sum(r.evaluations for r in results),
        seed=seed,
    )
