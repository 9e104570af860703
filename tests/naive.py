"""The slow twin of every kernel, written from its definition."""

import functools
import itertools
import struct
import sys

import numpy as np
import scipy.signal
import scipy.special

# kernels/crc.py


def crc32_p4(data):
    """CRC32P4 bit by bit: a shift register fed with each byte's lowest bit first, read out mirrored."""
    register = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            feedback = (register >> 31) ^ (byte >> bit & 1)
            register = (register << 1) & 0xFFFFFFFF
            if feedback:
                register ^= 0xF4ACFB13
    return int(f"{register:032b}"[::-1], 2) ^ 0xFFFFFFFF


# Spatial moments, densities, region scores (D1-D3), fingerprint.


def voxel_slices(shape, grid):
    """Index of every voxel of one tap, channel group slowest."""
    edges = [[k * n // g for k in range(g + 1)] for n, g in zip(shape, grid, strict=True)]
    for i, j, k in itertools.product(*map(range, grid)):
        yield tuple(slice(e[m], e[m + 1]) for e, m in zip(edges, (i, j, k), strict=True))


def moments(taps):
    """``taps``: (activations (C, H, W), grid) each. Signals, non-finite counts, voxel and channel sums."""
    signals, nonfinite, voxels, channels = [], [], [], []
    for activations, grid in taps:
        a = np.asarray(activations, np.float64)
        finite = np.isfinite(a)
        signals.append(np.mean(np.abs(a[finite])) if finite.any() else np.nan)
        nonfinite.append(np.count_nonzero(~finite))
        for voxel in voxel_slices(a.shape, grid):
            x = a[voxel][finite[voxel]]
            voxels.append((np.sum(np.abs(x)), np.sum(x), np.sum(x**2)))
        channels += [np.sum(np.abs(a[c][finite[c]])) for c in range(len(a))]
    return np.array(signals), np.array(nonfinite), np.array(voxels).reshape(-1, 3), np.array(channels)


def density(elements):
    """D2 of one voxel's elements."""
    x = np.asarray(elements, np.float64)
    return np.mean(np.abs(x)) + 0.1 * np.log(np.var(x) + 1e-6)


def log_level(elements, floor):
    """Density of an input voxel."""
    return np.log(np.mean(np.abs(elements)) + floor)


def fingerprint(data):
    """64-bit hash of ``data`` (bytes, a multiple of 32)."""

    def times(a, b):
        return a * b % 2**64

    def take_in(lane, word):
        bits = format(lane ^ times(word, 0xC2B2AE3D27D4EB4F), "064b")
        return times(int(bits[31:] + bits[:31], 2), 0x9E3779B185EBCA87)

    lanes = [0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB]
    for i in range(0, len(data), 8):
        word = int.from_bytes(data[i : i + 8], sys.byteorder)
        lanes[i // 8 % 4] = take_in(lanes[i // 8 % 4], word)
    joined = functools.reduce(take_in, lanes)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        joined = times(joined ^ joined // 2**shift, factor)
    return joined ^ joined // 2**31


def bright_share(elements, limits):
    """Share of the input's voxels whose mean element reaches its limit."""
    return np.mean([np.mean(x) >= limit for x, limit in zip(elements, limits, strict=True)])


def region_scores(density, median, scale, theta, tap_of_voxel, usable):
    """All fields of `RegionScores` as a dictionary; ``usable``: one bool per tap."""
    density = np.where(usable[tap_of_voxel], density, np.nan)
    z = (density - median) / scale
    tap_score = np.full(len(usable), np.nan)
    for tap in range(len(usable)):
        mine = z[(tap_of_voxel == tap) & ~np.isnan(z)]
        if mine.size:
            tap_score[tap] = np.sqrt(np.mean(mine**2))
    weighted = np.where((tap_of_voxel > 0) & ~np.isnan(z), np.abs(theta) * np.abs(z), -1.0)
    worst = int(np.argmax(weighted))
    known = tap_score[1:][~np.isnan(tap_score[1:])]
    return {
        "density": density,
        "z": z,
        "tap_score": tap_score,
        "worst": worst if weighted[worst] >= 0 else None,
        "severity": weighted[worst] if weighted[worst] >= 0 else None,
        "score": known.max() if known.size else None,
        "input_score": None if np.isnan(tap_score[0]) else tap_score[0],
    }


# Consistency of the two views (D9).


def consistency(history, temporal_error, spatial_error, bias, window=128):
    """All fields after the last sample of ``history``, each (gamma (n_taps,), temporal, peak, spatial)."""
    gamma, temporal, peak, spatial = zip(*history, strict=True)
    log_gamma = np.array([np.mean(np.log(g + 1e-12)) for g in gamma])
    temporal, peak, spatial = (np.array(x, np.float64) for x in (temporal, peak, spatial))

    rho = agreement = in_error = coherence = None
    if len(history) >= window + 16:
        x, y = log_gamma[-window:], peak[-window - 16 : -16]
        if np.isfinite(x + y).all() and np.ptp(x) > 0 and np.ptp(y) > 0:
            rho = np.corrcoef(x, y)[0, 1]
    x, y = temporal[-window:], spatial[-window:]
    if len(x) == window and np.isfinite(x + y).all():
        pairs = [(a > temporal_error, b > spatial_error) for a, b in zip(x, y, strict=True)]
        agreement = sum(a == b for a, b in pairs) / window
        errors = [a == b for a, b in pairs if a or b]
        in_error = sum(errors) / len(errors) if errors else None
    since = len(temporal) % 16
    if np.isfinite((temporal + spatial)[len(temporal) - since :]).all():
        x, y = (series[: len(series) - since][-window:] for series in (temporal, spatial))
        if len(x) == window and np.isfinite(x + y).all() and np.ptp(x) > 0 and np.ptp(y) > 0:
            options = {"window": "hann", "nperseg": 32, "noverlap": 16, "detrend": "constant"}
            raw = scipy.signal.coherence(x, y, **options)[1][1:].mean()
            coherence = (raw - bias) / (1 - bias)
    terms = [term for term in (rho, agreement, coherence) if term is not None]
    return rho, agreement, in_error, coherence, np.mean(terms) if terms else None, len(terms)


# kernels/output.py


def output_summary(values):
    """Index of the largest finite value, its probability, entropy in nats, count of non-finite values."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    winner = int(np.where(finite, values, -np.inf).argmax()) if finite.any() else -1
    nonfinite = int((~finite).sum())
    if nonfinite or values.size < 2 or (values < 0).any() or abs(values.sum() - 1) > 1e-3:
        return winner, np.nan, np.nan, nonfinite
    positive = values[values > 0]
    return winner, values[winner], -(positive * np.log(positive)).sum(), 0


# kernels/quantised.py


def dequantised(integers, zero_point, scale):
    """What integers stand for."""
    return np.array([scale * (q - zero_point) for q in integers])


def softmax_values(integers, zero_point, scale):
    """The same, over their sum where that is as near to 1 as rounding of each leaves it."""
    values = dequantised(integers, zero_point, scale)
    total = values.sum()
    return values / total if total > 0 and abs(total - 1) <= scale * len(integers) else values


# kernels/surprise.py


def smoothed(history, smoothing):
    """Exponentially weighted mean of the scores since the last missing one."""
    if np.isnan(history[-1]):
        return np.nan
    since = max((i + 1 for i, score in enumerate(history) if np.isnan(score)), default=0)
    run = np.array(history[since:])
    ages = np.arange(len(run))[::-1]
    weights = smoothing * (1 - smoothing) ** ages
    weights[0] = (1 - smoothing) ** ages[0]
    return np.sum(weights * run)


def surprise(x, tail, quantiles, excess):
    """-log p of one channel's smoothed score."""
    if np.isnan(x):
        return np.nan
    reached = [k for k in range(len(tail)) if quantiles[k] >= x]
    if not reached:
        return -np.log(tail[-1]) + (x - quantiles[-1]) / excess
    k = reached[0]
    if k == 0:
        return 0.0
    ends = [quantiles[k - 1], quantiles[k]]
    return np.interp(x, ends, [-np.log(tail[k - 1]), -np.log(tail[k])])


# kernels/picture.py, kernels/displacement.py


def picture(frames, rows, columns):
    """Statistics of the last of ``frames`` (n, C, H, W): seven a region, dead rows, thumbnail, jump."""
    light = np.asarray(frames, np.float64).mean(axis=1)
    height, width = light.shape[1:]
    now = light[-1]
    nothing = np.full(now.shape, np.nan)
    across, down, laplacian = np.zeros((3, height, width))
    across[:, 1:] = np.abs(np.diff(now, axis=1))
    down[1:] = np.abs(np.diff(now, axis=0))
    for i, j in itertools.product(range(1, height - 1), range(1, width - 1)):
        four = now[i - 1, j] + now[i + 1, j] + now[i, j - 1] + now[i, j + 1]
        laplacian[i, j] = abs(4 * now[i, j] - four)
    change_1, change_2 = (np.abs(now - light[-1 - lag]) if len(light) > lag else nothing for lag in (1, 2))
    # The mean of single-precision points is taken in single precision: equal there is the same.
    single = np.float32([sum(c.astype(np.float32) for c in f) * np.float32(1 / len(f)) for f in frames[-2:]])
    same = (single[-1] == single[0]).astype(float) if len(light) > 1 else nothing
    flat = np.zeros((height, width))
    flat[:, 1:] = single[-1][:, 1:] == single[-1][:, :-1]
    maps = (across, down, laplacian, change_1, change_2, same, flat)
    statistics = [
        np.mean(part[region[1:]])
        for region in voxel_slices((1, height, width), (1, rows, columns))
        for part in maps
    ]
    grid = (1, min(16, height), min(16, width))
    thumbs = [
        np.array([frame[cell[1:]].mean() for cell in voxel_slices((1, height, width), grid)])
        for frame in light
    ]
    motion = [
        np.mean(np.abs(thumbs[-1] - thumbs[-1 - lag])) if len(thumbs) > lag else np.nan for lag in (1, 16)
    ]
    return np.array(
        [*statistics, dead_rows(single[-1]), *motion, jump(*light[-2:]) if len(light) > 1 else np.nan]
    )


def dead_rows(light):
    """Rows all of whose points are alike, or those of the row above, and not all the brightest there are."""
    height = len(light)
    nothing = [
        len(set(light[i])) == 1 or (i > 0 and list(light[i]) == list(light[i - 1])) for i in range(height)
    ]
    return sum(dead and set(light[i]) != {light.max()} for i, dead in enumerate(nothing))


def jump(before, now):
    """How well a displacement of the whole explains the change from one brightness (H, W) to the next."""
    change = left = 0.0
    steps = []
    for axis in (1, 0):
        a, b = before.mean(axis=axis), now.mean(axis=axis)
        n, reach = a.size, a.size // 8
        middle = range(reach, n - reach)
        # Where no displacement is better than none, there is none.
        tried = (0, *range(reach, -reach - 1, -1))
        spread = {d: np.var([b[i] - a[i - d] for i in middle]) for d in tried}
        best = min(spread, key=spread.__getitem__)
        change, left = change + spread[0], left + spread[best]
        steps.append(best / n)
    if change == 0:
        return 0.0
    return np.log(change / (left + 0.001 * change)).clip(0) * min(1.0, 24 * np.hypot(*steps))


# kernels/line.py


def peak_over_floor(history, level, floor, median, scale):
    """Robust z of one tap's spectral line after the last density of ``history``; None: not known."""
    ratios = []
    for density in history:
        if density is None or np.isnan(scale):
            ratios = []
            continue
        above = np.log(density + floor) - level
        ratios.append(above.max() - above.mean())
    if not ratios:
        return np.nan
    return (smoothed(ratios, 2 / 9) - median) / scale


# kernels/structure.py


def structure(history, lags=(1, 2, 4, 8, 16)):
    """Smoothed log size of the change over each lag, of one tap's good signals since the last bad one."""
    logs = np.log(np.maximum(history, 1e-30))
    rows = []
    for lag in lags:
        moved = [np.log(abs(b - a) + 1e-4) for a, b in zip(logs, logs[lag:], strict=False)]
        rows.append(smoothed(moved, 2 / 13) if moved else np.nan)
    return np.array(rows)


# kernels/debounce.py


def confirmations(ratio, passed, steps):
    """Frames in which a flag of any channel becomes confirmed, one channel and one frame after the other."""
    found = set()
    for column, (up, down) in zip(np.transpose(ratio), steps, strict=True):
        counter, status = -128, "inactive"
        for t, value in enumerate(column):
            if value >= 1:
                counter = min(127, (max(0, counter)) + up)
            elif value < passed:
                counter = max(-128, counter - down)
            if counter == 127 and status != "confirmed":
                status = "confirmed"
                found.add(t)
            if counter == -128:
                status = "inactive"
    return [t in found for t in range(len(ratio))]


# kernels/perceptron.py


def perceptron(history, mean, scale, hidden, output):
    """Log odds of a fault in the last of the inputs; probability of each fault from smoothed logits."""
    smooth, total = np.zeros(output.shape[1] - 1), 0.0
    for inputs in history:
        with np.errstate(over="ignore"):
            u = np.nan_to_num((inputs - mean) / scale, nan=0.0, posinf=1e6, neginf=-1e6)
        bounded = u / (1 + np.abs(u) / 8)
        units = np.maximum(np.append(bounded, 1.0) @ hidden, 0.0)
        logits = np.append(units, 1.0) @ output
        score = scipy.special.logsumexp(logits[1:]) - logits[0]
        weight = scipy.special.expit(max(score, -30.0))
        smooth, total = smooth * 15 / 17 + weight * logits[1:], total * 15 / 17 + weight
    return score, scipy.special.softmax(smooth / total)


# EEG: ring, sliding spectrum, band powers, states (D1, D4-D6).


@functools.lru_cache
def hann_dft(n_samples):
    """Periodic Hann times ``exp(-2 pi i k n / N)``, k = 0 ... N/2; one-sided weights (extended precision)."""
    turn = 8 * np.arctan(np.longdouble(1))
    n = np.arange(n_samples)
    hann = (1 - np.cos(turn * n / n_samples)) / 2
    angle = turn * (np.outer(n, np.arange(n_samples // 2 + 1)) % n_samples) / n_samples
    weight = np.full(n_samples // 2 + 1, 2 / (hann**2).sum())
    weight[[0, -1]] /= 2
    return hann[:, None] * np.cos(angle), -hann[:, None] * np.sin(angle), weight


def welch_density(samples, n_samples, segments, bins=slice(None)):
    """One-sided Welch density (frame rate 1) of the last samples of the last axis."""
    samples = np.asarray(samples, np.longdouble)
    cosine, sine, weight = (table[..., bins] for table in hann_dft(n_samples))
    total = 0
    for m in range(segments):
        end = samples.shape[-1] - m * n_samples // 2
        segment = samples[..., end - n_samples : end]
        segment = segment - segment.mean(axis=-1, keepdims=True)
        total = total + weight * ((segment @ cosine) ** 2 + (segment @ sine) ** 2)
    return total / segments


def band_bins(edges_hz, n_samples, frame_rate_hz, *, top):
    """Bins of one band, all numbers Fractions; the top band holds Nyquist when it ends there."""
    low, high = edges_hz
    nyquist = frame_rate_hz / 2
    frequency = {k: k * frame_rate_hz / n_samples for k in range(1, n_samples // 2 + 1)}
    return [k for k, f in frequency.items() if low <= f < high or (top and f == high == nyquist)]


class Bands:
    """Band powers from whole windows; ``bins``: one list of bins per band."""

    def __init__(self, windows, bins, n_taps, segments):
        self.windows, self.bins, self.segments = windows, bins, segments
        self.history = [[] for _ in range(n_taps)]  # (value, held) since the last restart
        self.unusable = [0] * n_taps

    def update(self, samples, good, missing):
        self.step(samples, [False] * len(good), missing)
        self.step(samples, good, 1)
        return np.array([[self.power(tap, b) for b in range(len(self.bins))] for tap in range(len(good))])

    def step(self, samples, good, times):
        for tap, history in enumerate(self.history):
            for _ in range(times):
                if good[tap] and np.isfinite(samples[tap]):
                    self.unusable[tap] = 0
                    history.append((samples[tap], False))
                    continue
                self.unusable[tap] += 1
                if self.unusable[tap] > 3:
                    history.clear()
                elif history:
                    history.append((history[-1][0], True))

    def power(self, tap, band):
        n_samples = self.windows[band]
        span = n_samples + (self.segments - 1) * n_samples // 2
        window = [value for value, _ in self.history[tap][-span:]]
        if len(window) < span or not self.bins[band]:
            return np.nan
        return float(welch_density(window, n_samples, self.segments, self.bins[band]).sum() / n_samples)

    @property
    def held(self):
        return [sum(held for _, held in history[-max(self.windows) :]) for history in self.history]


def clean_distance(power, floor, mean, scale):
    """Standardised log powers, state of every tap (names of `STATES` as indices), temporal score."""
    with np.errstate(invalid="ignore"):
        z = (np.log(power + floor) - mean) / scale
    state = []
    for row, usable in zip(z, ~np.isnan(mean + scale), strict=True):
        if not usable.any() or np.isnan(row[usable]).any():
            state.append(-1)
        else:
            state.append(int(np.nanargmax(row)) if np.nanmax(row) > 1 else 2)
    valid = np.abs(z[~np.isnan(z)])
    return z, state, valid.max() if valid.size else np.nan


# kernels/features.py


def channel_groups(n_channels):
    """Channels of each of at most 32 groups."""
    n = min(n_channels, 32)
    return [range(k * n_channels // n, (k + 1) * n_channels // n) for k in range(n)]


def levels(activations, grid, picture=()):
    """Features of one tap from its activations (n, C, H, W) in n frames.

    Channel groups, then voxels, then statistics of the picture.
    """
    size = np.abs(np.asarray(activations, np.float64))
    groups = [np.mean(size[:, group]) for group in channel_groups(size.shape[1])]
    voxels = [np.mean([frame[voxel] for frame in size]) for voxel in voxel_slices(size.shape[1:], grid)]
    return np.array([*groups, *voxels, *picture])


# kernels/residual.py


def multiply(vector, matrix):
    products = [
        [float(x) * float(w) for x, w in zip(vector, row, strict=True)] for row in np.transpose(matrix)
    ]
    return np.array([sum(row) for row in products])


def predictors(features, low, high):
    """Logarithms within their bounds, the features with these logarithms, and 1."""
    bounded = np.clip(np.log(features), low, high)
    return np.concatenate([bounded, np.exp(bounded), [1.0]])


def left_over(history, tap, low, high, weight):
    """What is left of the log features of ``tap`` in every frame, None where something is masked."""
    for frame in history:
        before = frame[tap - 1] if tap else np.empty(0)
        if before is None or frame[tap] is None:
            yield None
            continue
        bounded = np.clip(np.log(before), low[tap - 1], high[tap - 1]) if tap else before
        inputs = np.concatenate([bounded, np.exp(bounded), [1.0]])
        yield np.clip(np.log(frame[tap]) - multiply(inputs, weight), -20.0, 20.0)


def ewma_from_zero(samples):
    """Exponentially weighted mean over 8 of ``samples`` (n, m) that starts at 0."""
    ages = np.arange(len(samples))[::-1]
    return np.sum(2 / 9 * (7 / 9) ** ages[:, None] * samples, axis=0)


def residuals(history, low, high, weights, whitening):
    """Residual of every tap after the last frame, and the smoothed residuals of every feature.

    ``history``: per frame, the features of every tap, None for a masked tap; the other arguments hold one
    array per tap, ``weights`` (2 m + 1, n): of logs, of levels, constant.
    """
    distance, smoothed_residuals = [], []
    for tap, weight in enumerate(weights):
        left = list(left_over(history, tap, low, high, weight))
        off = np.array([x for x in left if x is not None]).reshape(-1, weight.shape[1])
        smooth = ewma_from_zero(off)
        smoothed_residuals.append(smooth)
        known = left[-1] is not None and len(off) >= 8
        distance.append(np.linalg.norm(multiply(smooth, whitening[tap])) if known else np.nan)
    return distance, smoothed_residuals


def shift(history, weight, whitening):
    """Distance of the input's smoothed residuals from their slow mean, and feature by feature; None: unknown.

    The slow mean is the plain mean of the first frames, then exponentially weighted over 90.
    """
    left = list(left_over(history, 0, None, None, weight))
    off = [x for x in left if x is not None]
    if left[-1] is None or len(off) < 90:
        return None
    slow = np.mean(off[:45], axis=0)
    for n, values in enumerate(off[45:], 46):
        slow = slow + max(2 / 91, 1 / n) * (values - slow)
    departure = ewma_from_zero(np.array(off)) - slow
    return np.linalg.norm(multiply(departure, whitening)), departure


# kernels/tracts.py


def drives(elements, gate):
    """Sum of positive parts per frame, and sigma(alpha + beta mean a), of a voxel; elements (n frames, m)."""
    u = np.clip(gate[0] + gate[1] * np.mean(elements), -500.0, 500.0)
    return np.sum(elements[elements > 0]) / len(elements), scipy.special.expit(u)


def tracts(drive, openness, log_active, median, scale):
    """Z of the tracts of one transition: drive of its sources, openness of its targets; None is unknown."""
    z = np.full((len(drive), len(openness)), np.nan)
    for g, h in np.ndindex(z.shape):
        if drive[g] > 0 and np.log(drive[g]) >= log_active[g]:
            z[g, h] = (np.log(drive[g] * openness[h]) - median[g, h]) / scale[g, h]
    return z


def root_cause(residual, taps, smooth, limit, strong):
    """Alarming voxels, those that strong tracts reach from the first such tap behind the input, and the root.

    ``taps``: (shape, grid) each; ``smooth``, ``limit``: features of each tap; ``strong``: one matrix
    (source, target) per transition.
    """
    excess = {}
    for tap, (shape, grid) in enumerate(taps):
        if not residual[tap] >= 1:
            continue
        features = np.abs(smooth[tap]) / limit[tap]
        groups = channel_groups(shape[0])
        for voxel, where in enumerate(voxel_slices(shape, grid)):
            channels = set(range(shape[0])[where[0]])
            reaching = [x for x, group in zip(features, groups, strict=False) if channels & set(group)]
            largest = max(features[len(groups) + voxel], *reaching)
            if largest >= min(1.0, max(features[: len(groups) + np.prod(grid)])):
                excess[tap, voxel] = largest
    own = [tap for tap, _ in excess if tap > 0]
    if not own:
        return set(excess), set(), None
    top = min(own)
    reached = {place for place in excess if place[0] == top}
    under = set()
    for tap in range(top, len(taps) - 1):
        reached = {
            (tap + 1, h)
            for after, h in excess
            if after == tap + 1 and any(strong[tap][g, h] for _, g in reached)
        }
        under |= reached
    root = max((place for place in excess if place[0] == top), key=excess.get)
    return set(excess), under, root


# kernels/memory.py, strips.py, tap_moments.py


def half(bits):
    """Number of a float16's bits."""
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def in_memory(tensor, block, filling):
    """(C, H, W) as [ceil(C / block), H, W, block], element by element; what fills up is ``filling``."""
    channels, height, width = tensor.shape
    memory = np.full(-(-channels // block) * height * width * block, filling, tensor.dtype)
    for c, h, w in itertools.product(*map(range, tensor.shape)):
        memory[((c // block * height + h) * width + w) * block + c % block] = tensor[c, h, w]
    return memory


def tap_moments(taps):
    """`moments` of stored tensors: (tensor (C, H, W), grid, scale, zero point) each."""
    return moments([(scale * (q.astype(np.float64) - zero), grid) for q, grid, scale, zero in taps])


def walk(program, n_strips):
    """Elements that a program reads, in its order: index, channel, voxels of each."""
    numbers = iter(program)
    for _ in range(n_strips):
        strip = list(itertools.islice(numbers, 11))
        (
            start,
            n_outer,
            outer_stride,
            n_inner,
            inner_stride,
            filled,
            tail,
            period,
            channel,
            by_lane,
            n_folds,
        ) = strip
        folds = [list(itertools.islice(numbers, 3)) for _ in range(n_folds)]
        for outer in range(n_outer):
            for inner, lanes in enumerate([filled] * n_inner + [tail]):
                for lane in range(lanes):
                    place = lane % period
                    index = start + outer * outer_stride + inner * inner_stride + lane
                    voxels = [voxel for voxel, first, stop in folds if first <= place < stop]
                    yield index, channel + (place if by_lane else outer), voxels
