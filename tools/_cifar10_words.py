"""How results are written: every sentence with a result in it comes from the numbers."""

from __future__ import annotations

import numpy as np
from _cifar10_results import Interval, Study

from edge_monitor.offline.page import UNKNOWN, number


def deletion_finding(study: Study) -> str:
    """Say against which orders deleting by theta lowers the accuracy faster, its interval leaving out 0."""
    rows = [found for found in study.deletion_means if found.order != "theta"]
    if any(np.isnan(found.theta_less.half) for found in rows):
        return "Which order of deletion lowers the accuracy fastest takes more seeds to say."
    faster = [f.order for f in rows if f.theta_less.mean < -f.theta_less.half]
    slower = [f.order for f in rows if f.theta_less.mean > f.theta_less.half]
    alike = [f.order for f in rows if abs(f.theta_less.mean) <= f.theta_less.half]
    found = listed(
        ("faster than", faster), ("more slowly than", slower), ("not measurably faster than", alike)
    )
    return f"Deleting voxels in order of θ lowers the accuracy {found}, averaged over layers."


def separation(study: Study) -> str:
    """Say in which conditions the cross-modal score differs from the clean moving camera's."""
    rows = [found for found in study.crossmodal if found.term == "score" and found.condition != "active"]
    if any(found.separates is None for found in rows):
        return "Whether the cross-modal score tells conditions apart takes more seeds to say."
    falls = [found.condition for found in rows if found.separates and found.area.mean > 0.5]
    rises = [found.condition for found in rows if found.separates and found.area.mean < 0.5]
    alike = [found.condition for found in rows if not found.separates]
    found = listed(
        ("falls in", falls), ("rises in", rises), ("does not separate the moving camera from", alike)
    )
    return f"The cross-modal score {found}."


def listed(*findings: tuple[str, list[str]]) -> str:
    """Join findings, those without names left out: "falls in a and b; rises in c"."""
    return "; ".join(f"{what} {' and '.join(names)}" for what, names in findings if names)


def plus_minus(value: Interval, digits: int) -> str:
    """Write mean ± half; the mean alone where there is no interval."""
    mean = number(round(value.mean, digits) + 0.0, digits)  # no minus before 0
    return mean if mean == UNKNOWN or np.isnan(value.half) else f"{mean} ± {number(value.half, digits)}"


def plus_minus_percent(value: Interval) -> str:
    """Write a share with its interval, in percent."""
    scaled = Interval(100 * value.mean, 100 * value.half, ())
    text = plus_minus(scaled, 0)
    return text if text == UNKNOWN else f"{text} %"


def percent(share: float) -> str:
    return UNKNOWN if np.isnan(share) else f"{100 * share:.0f} %"


def seed_names(study: Study) -> tuple[str, ...]:
    return tuple(f"seed {seed}" for seed in study.seeds)


def numbers(value: Interval) -> tuple[str, ...]:
    return tuple(f"{x:.6g}" for x in (value.mean, value.half, *value.seeds))
