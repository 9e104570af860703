"""One self-contained HTML page: its parts, and how they become a file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import msgspec
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edge_monitor.errors import InputError
from edge_monitor.flag_causes import locate
from edge_monitor.types import TapSpec

UNKNOWN = "–"
"""How a number that is not known is written, everywhere."""


class Text(msgspec.Struct, frozen=True):
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


class Facts(msgspec.Struct, frozen=True):
    """Names and values, one pair a line."""

    kind: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]


class Table(msgspec.Struct, frozen=True):
    """A table; all rows after the first ``shown`` are folded. The first ``words`` columns are text."""

    kind: ClassVar[str] = "table"
    name: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shown: int = 12
    words: int = 1


class Figure(msgspec.Struct, frozen=True):
    """A picture with the numbers behind it.

    ``name`` is unique on the page, ``svg`` a drawing from `plots.drawing`, ``alt`` what it shows for
    those who cannot see it, ``csv`` its numbers from `csv_text`.
    """

    kind: ClassVar[str] = "figure"
    name: str
    svg: str
    alt: str
    caption: str
    csv: str

    @property
    def drawing(self) -> Markup:
        """The SVG element, its ids made unique on the page."""
        svg = self.svg
        for before in (' id="', "url(#", 'href="#'):
            svg = svg.replace(before, f"{before}{self.name}-")
        return Markup(svg)  # noqa: S704 - the SVG writer escapes what it was given

    @property
    def data(self) -> str:
        """The numbers as a data URI."""
        return "data:text/csv;charset=utf-8," + quote(self.csv, safe=",;:+-.()/[] ")


Part = Text | Facts | Table | Figure


class Section(msgspec.Struct, frozen=True):
    """A heading, what is to be seen under it, and the parts."""

    anchor: str
    title: str
    lead: str
    parts: tuple[Part, ...]


class Page(msgspec.Struct, frozen=True):
    """A page. ``badge`` is the verdict in a word, ``level`` one of calm, warn and fail."""

    title: str
    badge: str
    level: str
    verdict: str
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]


def to_html(page: Page) -> str:
    """Render a page; equal pages give equal text, and everything in them is escaped."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = files("edge_monitor.offline").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Write a page; a reader sees the old file or the whole new one.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    text = to_html(page)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise InputError(path, f"cannot be written ({error.strerror})") from error


def csv_text(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Comma-separated values; a field that holds a comma, a quote or a line break is quoted (RFC 4180)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(rows)
    return out.getvalue()


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Write a number with so many decimals; `UNKNOWN` when it is not known."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return UNKNOWN
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "−").replace("inf", "∞")


def count(n: int) -> str:
    """Write a count, its thousands apart."""
    return f"{n:,}".replace(",", "\u202f")


def decimals(largest: float) -> int:
    """Return the decimals that show a number of this size to four digits."""
    return int(np.clip(3 - np.floor(np.log10(largest)), 0, 12)) if largest > 0 else 4


def clock(seconds: float) -> str:
    """Write a time on the recording's axis: 0:07, 12:30, 1:02:03."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def clock_tenths(seconds: float) -> str:
    """Write a time with tenths of a second: 0:07.3."""
    return f"{clock(seconds)}.{int(seconds * 10) % 10}"


def place_of(taps: tuple[TapSpec, ...], voxel: int) -> tuple[str, str]:
    """Tap of a voxel and its group, row and column in that tap's grid, as two cells of a table."""
    tap, place = locate(taps, voxel)
    return tap.name, " · ".join(map(str, place))
