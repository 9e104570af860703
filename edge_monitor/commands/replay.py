"""`edge-monitor replay`: a recording given to a fresh monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_monitor.commands.console import out, progress_bar
from edge_monitor.commands.options import JsonOption


def replay(
    recording: Annotated[Path, typer.Argument(help="MCAP file that run or the demo wrote")],
    as_json: JsonOption = False,
) -> None:
    """Feed a recording to a fresh monitor and compare its reports with the recorded ones."""
    import msgspec

    from edge_monitor.offline.replay import replay as again

    with progress_bar() as progress:
        result = again(recording, progress)
    if as_json:
        typer.echo(msgspec.json.encode(result))
    else:
        for line in result.transitions:
            out.print(line, soft_wrap=True)
        cut = ", up to where the file is cut or damaged" if result.truncated else ""
        cut += f"; {result.lost} inputs were not recorded" if result.lost else ""
        out.print(f"{result.identical} of {result.compared} reports identical{cut}")
    if result.identical != result.compared:
        raise typer.Exit(1)
