"""`edge-monitor report`: a map or a recording as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_monitor.commands.console import out, progress_bar


def report(
    file: Annotated[Path, typer.Argument(help="region map (.npz) or recording (.mcap)")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the page to write (FILE's name with .html, here)")
    ] = None,
) -> None:
    """Write what a region map or a recording holds as one HTML page."""
    from edge_monitor.offline.report import report as write

    with progress_bar() as progress:
        page = write(file, output, progress)
    out.print(f"wrote {page}", soft_wrap=True)
