"""What the studies found, as Markdown, from the JSON that they printed into tests/bench."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _venv import ROOT

FOLDER = ROOT / "tests" / "bench"
ORDERS = {"theta": "θ", "mean activation": "mean activation", "density": "density", "random": "random"}


def studies(folder: Path = FOLDER) -> str:
    """All tables, one after the other."""
    connectivity, impact, cost = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("connectivity", "impact", "impact_cost")
    )
    parts = [claims(impact, cost), deletion(impact["deletion"]), naming(connectivity), costs(cost)]
    return "\n\n".join(parts)


def claims(impact: dict[str, Any], cost: list[dict[str, Any]]) -> str:
    """Single figures with their goals."""
    exact, headline = impact["enumeration"], next(row for row in cost if row["met"] is not None)
    within = sum(row["within_3"] * row["voxels"] for row in exact) / sum(row["voxels"] for row in exact)
    worst = max(row["worst"] for row in exact)
    lines = [
        "| `tools/study_impact`, `tools/bench_impact` | measured | goal | met |",
        "|---|---|---|---|",
        _claim("θ within 3 standard errors of all 2^n coalitions", f"{within:.1%}", "97 %", within >= 0.97),
        _claim("largest deviation, standard errors", f"{worst:.1f}", "6", worst <= 6),
    ]
    for pairs in sorted({row["pairs"] for row in impact["shap"]}, reverse=True):
        low = min(row["correlation"] for row in impact["shap"] if row["pairs"] == pairs)
        name = f"lowest correlation of 6 taps with `shap`, {pairs} pairs each"
        lines.append(_claim(name, f"{low:.4f}", "0.99", low >= 0.99))
    name = "θ of 3 taps × {voxels} voxels, {pairs} pairs, {images} images".format(**headline)
    measured = f"{headline['seconds']:.0f} s, {headline['peak_mib']:.0f} MiB"
    lines.append(_claim(name, measured, "300 s, 2048 MiB", headline["met"]))
    return "\n".join(lines)


def _claim(name: str, measured: str, goal: str, met: bool) -> str:
    return f"| {name} | {measured} | {goal} | {'yes' if met else '**no**'} |"


def deletion(rows: list[dict[str, Any]]) -> str:
    """Area under the deletion curve, mean and deviation over seeds."""
    taps = list(dict.fromkeys(row["tap"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    area = {(row["tap"], row["order"], row["seed"]): row["area"] for row in rows}
    lines = [
        f"Area under ResNet8's accuracy on 500 test images while voxels are deleted, {len(seeds)} seeds;"
        " smaller means that the order finds what matters:",
        "",
        "| deleted in order of | " + " | ".join([*taps, "mean"]) + " |",
        "|---" * (len(taps) + 2) + "|",
    ]
    for order, name in ORDERS.items():
        columns = [[area[tap, order, seed] for seed in seeds] for tap in taps]
        columns.append([mean(values) for values in zip(*columns, strict=True)])
        cells = [f"{mean(values):.3f} ± {stdev(values):.3f}" for values in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def naming(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """How often the broken layer is named."""
    lines = [
        "Faults put into the demo model on unseen roads (`tools/study_connectivity`); named within 3 s:",
        "",
        "| taps | fault | trials | right layer named | any layer named | confirmed | decisions changed |",
        "|---|---|---|---|---|---|---|",
    ]
    for taps, kinds in results.items():
        for kind, row in kinds.items():
            trials, *shares = row.values()
            cells = " | ".join(f"{share:.1f} %" for share in shares)
            lines.append(f"| {taps} | {kind} | {trials:.0f} | {cells} |")
    return "\n".join(lines)


def costs(rows: list[dict[str, Any]]) -> str:
    """Seconds per pair of permutations against voxels and images."""
    table = [row for row in rows if row["met"] is None]
    images = sorted({row["images"] for row in table})
    seconds = {(row["voxels"], row["images"]): row["seconds"] / row["pairs"] for row in table}
    lines = [
        "Seconds per pair of permutations, all 3 taps of ResNet8, 2 cores (`tools/bench_impact`):",
        "",
        "| voxels a tap | " + " | ".join(f"{n} images" for n in images) + " |",
        "|---" * (len(images) + 1) + "|",
    ]
    body = (
        f"| {voxels} | " + " | ".join(f"{seconds[voxels, n]:.2f}" for n in images) + " |"
        for voxels in sorted({row["voxels"] for row in table})
    )
    return "\n".join([*lines, *body])
