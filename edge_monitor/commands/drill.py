"""`edge-monitor drill`: known faults put into clean frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_monitor.commands.console import err, out, progress_bar
from edge_monitor.commands.options import (
    FRAMES_HELP,
    JsonOption,
    LimitOption,
    MeanOption,
    ModelArg,
    ScaleOption,
    StdOption,
    frame_settings,
)


def drill(
    model: ModelArg,
    frames: Annotated[
        str,
        typer.Argument(metavar="FRAMES", help=f"{FRAMES_HELP}; not those that the map was calibrated on"),
    ],
    region_map: Annotated[Path, typer.Option("--map", help="the map to drill")] = Path("map.npz"),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="write an HTML page too")] = None,
    scenes: Annotated[int, typer.Option(help="scenes, evenly spaced, 618 frames each at 30 frames/s")] = 8,
    fault: Annotated[list[str] | None, typer.Option(help="only this fault; repeat for several")] = None,
    severity: Annotated[
        list[float] | None, typer.Option(help="1 (mild), 2, 3; repeat for several (all three)")
    ] = None,
    ramps: Annotated[bool, typer.Option(help="gradual faults also growing over 10 s")] = True,
    seed: Annotated[int, typer.Option(help="seed of the faults' places, phases and noise")] = 0,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put known faults into clean frames, and see whether and how fast the monitor finds them.

    FRAMES have to be clean, and others than those that the map was calibrated on. A scene takes 318 of them
    and 10 s more: 8 scenes at 30 frames/s take 4944.
    """
    import msgspec

    from edge_monitor.map_file import load_region_map
    from edge_monitor.offline.drill import UNBROKEN, Case, choose_cases
    from edge_monitor.offline.drill import drill as break_scenes
    from edge_monitor.offline.drill_scenes import CleanScenes
    from edge_monitor.offline.drill_table import describe_drill, summarize
    from edge_monitor.offline.faults import SEVERITIES
    from edge_monitor.offline.injection import Injector, Range
    from edge_monitor.offline.observe import N_IMAGES, pick_frames
    from edge_monitor.offline.output_file import check_page_file
    from edge_monitor.offline.page import write_page
    from edge_monitor.offline.report_drill import drill_page
    from edge_monitor.taps.known_model import load_known_model

    known = load_region_map(region_map)
    data, _ = load_known_model(model, known)
    cases = [Case(UNBROKEN, 0.0), *choose_cases(fault or (), severity or SEVERITIES, ramps=ramps)]
    if output is not None:
        check_page_file(output)
    rate_hz = known.provenance.frame_rate_hz
    stream = frame_settings(frames, rate_hz, scale, mean, std, limit)
    clean = CleanScenes(model, known, stream, scenes)
    if frames == known.provenance.source:
        err.print(
            f"warning: the map was calibrated on {frames}: what it finds there, it knows", soft_wrap=True
        )
    skipped: list[tuple[Case, str]] = []
    with progress_bar() as progress:
        picked, _ = pick_frames(stream, known.input_shape, N_IMAGES, progress)
        injector = Injector(data, known.taps, Range.of(picked), rate_hz)
        told = break_scenes(
            injector, known, clean, cases, seed, progress, lambda case, why: skipped.append((case, why))
        )
        drilled = summarize(known, frames, list(told), skipped, seed)
    if output is not None:
        write_page(drill_page(drilled), output)
    if as_json:
        typer.echo(msgspec.json.encode(drilled))
        return
    out.print(describe_drill(drilled))
    if output is not None:
        out.print(f"wrote {output}", soft_wrap=True)
