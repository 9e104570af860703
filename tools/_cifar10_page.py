"""The study as one HTML page: its verdict, its sections, how it was made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from _cifar10_measure import QUICK, SETTLED, WARM
from _cifar10_results import Study
from _cifar10_sections import (
    crossmodal_section,
    impact_section,
    signature_section,
    state_section,
    tract_section,
)
from _cifar10_stream import (
    CORRUPTION_NOISE,
    FADE_FRAMES,
    FRAME_RATE_HZ,
    FRAMES_PER_IMAGE,
    PAN_PX,
    SENSOR_NOISE,
    ZOOM,
)
from _cifar10_words import deletion_finding, percent, separation
from _cifar10_worlds import RoadWorld
from _study_deletion import RANDOM_ORDERS

from edge_monitor.offline.page import Facts, Page, Section, Text, count


def study_page(study: Study) -> Page:
    notes = tuple(warnings(study))
    return Page(
        title=f"Study of {study.world}",
        badge=f"{'▲' if notes else '●'} {len(study.seeds)} {'SEED' if len(study.seeds) == 1 else 'SEEDS'}",
        level="warn" if notes else "calm",
        verdict=verdict(study),
        warnings=notes,
        sections=(
            signature_section(study),
            state_section(study),
            impact_section(study),
            tract_section(study),
            crossmodal_section(study),
            method_section(study),
        ),
    )


def warnings(study: Study) -> Iterator[str]:
    if study.world == RoadWorld.name:
        yield (
            "ResNet8 and CIFAR-10 were not found in EDGE_MONITOR_DATA: this page shows the demo model on "
            "the demo road instead."
        )
    if study.effort == QUICK:
        yield "A quick run on little data: its numbers are rough."
    if len(study.seeds) == 1:
        yield "One seed has no interval, and its conditions are told with its own calibration clips."


def verdict(study: Study) -> str:
    named = float(np.mean([signature.named.mean for signature in study.signatures]))
    return (
        f"The band signature names the layer in {percent(named)} of 10 s windows (by chance "
        f"{percent(1 / len(study.signatures))}). The states tell idle, active and corrupted input apart in "
        f"{percent(study.telling.right_kind.mean)} of clips. {deletion_finding(study)} "
        f"{separation(study)}"
    )


def method_section(study: Study) -> Section:
    effort = study.effort
    seconds = effort.stream_frames / FRAME_RATE_HZ
    pairs = [
        ("world", study.world),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("calibration", f"{count(effort.stream_frames)} frames ({seconds:g} s) of the moving camera a seed"),
        (
            "clips",
            f"{effort.clips} of {effort.clip_frames} frames a condition and seed, and as many to teach from",
        ),
        ("used of a clip", f"frames {WARM} on for bands and states, {SETTLED} on for the consistency"),
        ("impact", f"{effort.pairs} antithetic pairs on {effort.impact_images} calibration images"),
        (
            "deletion",
            f"judged on {effort.judged_images} images; random is the mean of {RANDOM_ORDERS} orders",
        ),
        ("intervals", "95 %, Student's t over seeds"),
    ]
    camera = Text(
        f"CIFAR-10: {FRAMES_PER_IMAGE} frames an image at {FRAME_RATE_HZ:g} frames/s, zoom {ZOOM[0]:g} to "
        f"{ZOOM[1]:g}, up to {PAN_PX:g} pixels off the middle; the last {FADE_FRAMES} frames fade into the "
        "next image. Demo road: a drive, and for idle a vehicle that stopped on it."
    )
    conditions = Text(
        f"All pictures carry sensor noise of {SENSOR_NOISE:g} grey levels. Idle: the camera stands. Active: "
        f"it moves. Noise: Gaussian, {CORRUPTION_NOISE:g} levels, on top. Flicker: black for a few frames "
        "at random. Hanging: the picture freezes for up to a second and a half under fresh noise, then jumps."
    )
    limits = Text(
        "Calibration and judging share no image (on the road: no trip); seeds draw from the same images, and "
        "deletion is judged on the same ones where the set has no more. Nothing was fitted or chosen on "
        "judged clips. A picture that stays frozen under fresh noise is what a still camera gives: pictures "
        "alone cannot tell the two apart."
    )
    return Section("method", "Method", "", (Facts(tuple(pairs)), camera, conditions, limits))
