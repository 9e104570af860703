"""`edge-monitor impact`: what each region of a map is worth for the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_monitor.commands.console import err, out, progress_bar
from edge_monitor.commands.options import (
    FramesArg,
    LimitOption,
    MeanOption,
    ModelArg,
    ScaleOption,
    StdOption,
    frame_settings,
)


def impact(
    model: ModelArg,
    frames: FramesArg,
    region_map: Annotated[Path, typer.Option("--map", help="the map that gets the scores")] = Path("map.npz"),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write another map instead")] = None,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    limit: LimitOption = None,
    images: Annotated[int, typer.Option(help="frames to score on, evenly spaced")] = 256,
    labels: Annotated[
        Path | None, typer.Option(help=".npy with the class of every frame: scores accuracy")
    ] = None,
    payoff: Annotated[
        str | None, typer.Option(help="your own payoff, FILE.py:FUNCTION(ablated, whole)")
    ] = None,
    pairs: Annotated[int, typer.Option(help="antithetic pairs of permutations, at least")] = 128,
    max_stderr: Annotated[float | None, typer.Option(help="go on until no score's error is larger")] = None,
    max_evals: Annotated[int | None, typer.Option(help="coalitions to value at most, for each tap")] = None,
    seed: Annotated[int, typer.Option(help="seed of the permutations")] = 0,
) -> None:
    """Add to a map what each region is worth for the result (Shapley scores); takes minutes.

    Ctrl-C keeps what is done; the same command goes on from there.
    """
    import msgspec

    from edge_monitor.map_file import load_region_map, save_region_map
    from edge_monitor.offline.describe import describe_impact
    from edge_monitor.offline.impact import impact_scores
    from edge_monitor.offline.observe import pick_frames, read_labels
    from edge_monitor.offline.output_file import check_map_file
    from edge_monitor.offline.payoff import load_payoff
    from edge_monitor.offline.shapley import ShapleySettings
    from edge_monitor.taps.known_model import load_known_model

    known = load_region_map(region_map)
    load_known_model(model, known)
    target = output or region_map
    check_map_file(target)
    settings = ShapleySettings(pairs=pairs, max_stderr=max_stderr, max_evals=max_evals, seed=seed)
    stream = frame_settings(frames, known.provenance.frame_rate_hz, scale, mean, std, limit)
    own = load_payoff(payoff) if payoff else None
    checkpoint = target.with_name(f"{target.name}.impact")
    with progress_bar() as progress:
        picked, places = pick_frames(stream, known.input_shape, images, progress)
        classes = read_labels(labels, places) if labels else None
        try:
            scores = impact_scores(model, known.taps, picked, own, classes, settings, progress, checkpoint)
        except KeyboardInterrupt:
            kept = (
                f"the same command goes on from {checkpoint}" if checkpoint.exists() else "nothing done yet"
            )
            err.print(f"stopped; {kept}", soft_wrap=True)
            raise typer.Exit(130) from None
    save_region_map(msgspec.structs.replace(known, impact=scores), target)
    checkpoint.unlink(missing_ok=True)
    out.print(describe_impact(scores, known.taps))
    out.print(f"wrote {target}", soft_wrap=True)
