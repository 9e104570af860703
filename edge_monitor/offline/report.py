"""A region map or a recording as one HTML page that needs no network."""

from __future__ import annotations

from pathlib import Path

from mcap.writer import MCAP0_MAGIC

from edge_monitor.errors import InputError
from edge_monitor.map_file import load_region_map
from edge_monitor.offline.observe import Progress, silent
from edge_monitor.offline.output_file import check_page_file
from edge_monitor.offline.page import write_page
from edge_monitor.offline.report_map import map_page
from edge_monitor.offline.report_recording import recording_page


def report(file: Path, output: Path | None = None, progress: Progress = silent) -> Path:
    """Write the page of a region map or of a recording; what it is shows in its first bytes.

    Parameters
    ----------
    file : Path
        Region map or recording.
    output : Path, optional
        Page to write, by default the file's stem with ``.html`` in the current directory. An existing
        page is replaced, anything else is left alone.
    progress : callable

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        The file is missing, or neither a map nor a recording; the page cannot be written.
    MapError
        The map is damaged.
    RecordingError
        The recording holds nothing that can be replayed.
    """
    output = output or Path(f"{file.stem}.html")
    check_page_file(output)
    try:
        with file.open("rb") as opened:
            head = opened.read(len(MCAP0_MAGIC))
    except OSError as error:
        raise InputError(file, error.strerror or str(error)) from error
    if head.startswith(b"PK"):
        page = map_page(load_region_map(file), file.name)
    elif head == MCAP0_MAGIC:
        page = recording_page(file, progress)
    else:
        raise InputError(file, "is neither a region map nor a recording")
    write_page(page, output)
    return output
