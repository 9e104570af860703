"""`edge-monitor calibrate`: clean frames or a recording in, a region map out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_monitor.commands.console import out, progress_bar
from edge_monitor.commands.options import (
    FRAMES_HELP,
    LimitOption,
    MeanOption,
    ModelArg,
    ScaleOption,
    StdOption,
    frame_settings,
    refused,
)
from edge_monitor.errors import InputError


def calibrate(
    model: ModelArg,
    frames: Annotated[str | None, typer.Argument(metavar="FRAMES", help=FRAMES_HELP)] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="the map to write")] = Path("map.npz"),
    rows: Annotated[
        Path | None, typer.Option(help="fit baselines from this recording of the device instead of frames")
    ] = None,
    tap: Annotated[list[str] | None, typer.Option(help="tensor to tap; repeat for several")] = None,
    frame_rate_hz: Annotated[
        float | None, typer.Option("--rate", help="frame rate of the stream, Hz (30)")
    ] = None,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    limit: LimitOption = None,
    alarms_per_hour: Annotated[float, typer.Option(help="false-alarm budget")] = 1.0,
    bands: Annotated[str, typer.Option(help="frequency scale of the bands: nyquist or hz")] = "nyquist",
) -> None:
    """Learn a region map from clean frames."""
    from edge_monitor.config import CalibrationSettings
    from edge_monitor.map_file import save_region_map
    from edge_monitor.offline.calibrate import calibrate as learn
    from edge_monitor.offline.describe import describe_map
    from edge_monitor.offline.observe import observe, observe_recording
    from edge_monitor.offline.output_file import check_map_file

    if (frames is None) == (rows is None):
        raise InputError("FRAMES", "give either frames or --rows RECORDING")
    of_frames = {"tap": tap, "rate": frame_rate_hz, "scale": scale, "mean": mean, "std": std, "limit": limit}
    given = [f"--{name}" for name, value in of_frames.items() if value is not None]
    if rows is not None and given:
        raise InputError(given[0], "belongs to frames; --rows takes it from the recording")
    check_map_file(output)
    try:
        settings = CalibrationSettings(alarms_per_hour=alarms_per_hour, bands=bands)
    except ValueError as error:
        raise refused(error) from error
    rate_hz = 30.0 if frame_rate_hz is None else frame_rate_hz
    stream = frame_settings(frames or "-", rate_hz, scale, mean, std, limit)
    with progress_bar() as progress:
        if rows is not None:
            observed = observe_recording(model, rows)
        else:
            observed = observe(model, stream, tap, progress)
        region_map = learn(observed, settings, progress)
    save_region_map(region_map, output)
    out.print(describe_map(region_map))
    out.print(f"wrote {output}", soft_wrap=True)
