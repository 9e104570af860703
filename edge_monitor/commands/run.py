"""`edge-monitor run`: the model served under watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_monitor.commands.console import out, print_slow_kernels
from edge_monitor.commands.options import JsonOption


def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration, see firmware_configs/")],
    as_json: JsonOption = False,
) -> None:
    """Serve a model under watch until its frames end or SIGTERM comes."""
    import msgspec

    from edge_monitor.config import load_config
    from edge_monitor.errors import about
    from edge_monitor.service import Service

    with about(config):
        service = Service(load_config(config))
    print_slow_kernels()
    served = service.run()
    if as_json:
        typer.echo(msgspec.json.encode(served))
        return
    recording = f", recording {served.recording}" if served.recording else ""
    out.print(
        f"{served.frames} frames, {served.flags} flags, {served.step_us_p50:.0f} µs a step{recording}",
        soft_wrap=True,
    )
