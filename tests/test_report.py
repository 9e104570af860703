"""Pages of maps and recordings: what they say, that they say it alone, and that a browser draws them."""

import base64
import csv
import hashlib
import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import models
import numpy as np
import pytest
from chromium import measured, screenshot
from maps import minimal_map
from matplotlib.figure import Figure as MplFigure
from msgspec.structs import replace
from PIL import Image

from edge_monitor import cli
from edge_monitor.errors import InputError, MapError, RecordingError
from edge_monitor.map_file import save_region_map, to_bytes
from edge_monitor.offline.page import place_of, to_html
from edge_monitor.offline.report import report
from edge_monitor.offline.report_freeze_frame import freeze_frame_section
from edge_monitor.offline.report_map import map_page
from edge_monitor.offline.report_recording import recording_page
from edge_monitor.offline.watching import FreezeFrame
from edge_monitor.pipeline import Monitor
from edge_monitor.region_map import Impact
from edge_monitor.reports import CHANNELS, Transition
from edge_monitor.sinks.recording import RecordingSink
from edge_monitor.types import SpatialBlock, StatRow, Tick

MINIMAL = minimal_map(models.cnn())
EVIL = "<script>$x_1$"
VOID = {"meta", "link", "img", "br", "input", "hr"}
BROKEN = "operator Einsum of node attention_3 cannot be traced"


class Parsed(HTMLParser):
    """A page taken apart; an element that is closed wrongly is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.tags = [], [], [], set()
        self.tables, self.data, self.text, self.drawn = {}, {}, "", ""
        self._cell = None
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{name} on {tag}"
            if name in {"src", "href", "xlink:href", "action", "srcset"}:
                self.references.append(value)
            elif not name.startswith("xmlns"):
                assert "://" not in value, (tag, name, value)
        if "download" in attributes:
            text = unquote(attributes["href"].removeprefix("data:text/csv;charset=utf-8,"))
            self.data[attributes["download"]] = list(csv.reader(text.splitlines()))
        if tag == "table":
            self._table = self.tables.setdefault(attributes["data-name"], [])
        elif tag == "tr":
            self._row = []
        elif tag in {"td", "th"}:
            self._cell = ""

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag
        if tag in {"td", "th"}:
            self._row.append(self._cell)
            self._cell = None
        elif tag == "tr" and self._row not in self._table:  # the head again, over the folded rows
            self._table.append(self._row)

    def handle_data(self, data):
        self.text += data
        if "svg" in self.open:
            self.drawn += data
        if self._cell is not None:
            self._cell += data


def full_map():
    """Map with made-up impact and tracts; the second transition cannot be traced."""
    rng = np.random.default_rng(3)
    taps, n_input = MINIMAL.taps, MINIMAL.taps[0].n_voxels
    n_voxels = sum(tap.n_voxels for tap in taps)
    theta = rng.normal(0, 0.03, n_voxels)
    theta[:n_input] = np.nan
    theta[n_input + 5] = -0.21
    stderr = rng.uniform(0.001, 0.01, n_voxels)
    pairs = np.array([8.0, 32.0, 128.0])
    history = theta + rng.normal(0, 0.1, (3, n_voxels)) / np.sqrt(pairs)[:, None]
    three = np.full(len(taps) - 1, 0.5)
    image_stderr = np.full(n_voxels, np.nan)
    impact = Impact(
        theta, stderr, image_stderr, three, three, three * 256, pairs, history, "decision", 1, 4096, 7
    )
    sizes = [a.n_voxels * b.n_voxels for a, b in itertools.pairwise(taps)]
    lost = slice(sizes[0], sizes[0] + sizes[1])
    strength, fidelity = rng.gamma(0.7, 2, sum(sizes)), rng.uniform(0.8, 1.0, sum(sizes))
    fidelity[0] = np.nan
    strength[lost] = fidelity[lost] = np.nan
    tracts = replace(
        MINIMAL.tracts, strength=strength, fidelity=fidelity, problems=("", BROKEN, ""), images=64
    )
    profile = rng.normal(-8, 3, MINIMAL.eeg.mean.shape)
    profile[2, 4] = np.nan
    return replace(
        MINIMAL,
        impact=impact,
        tracts=tracts,
        eeg=replace(MINIMAL.eeg, profile_mean=profile),
        provenance=replace(MINIMAL.provenance, warnings=("a remark of calibration",)),
    )


FULL = full_map()


def renamed(region_map):
    """The same map, a tap of which has a hostile name."""
    taps = (*region_map.taps[:2], replace(region_map.taps[2], name=EVIL), *region_map.taps[3:])
    checks = list(region_map.neutrality.taps)
    checks[1] = replace(checks[1], name=EVIL)
    return replace(region_map, taps=taps, neutrality=replace(region_map.neutrality, taps=tuple(checks)))


def block(region_map, rng):
    voxels = np.column_stack([tap_sums(region_map, rng.uniform(0.5, 1.5)) for _ in range(3)])
    channels = rng.random(sum(tap.n_channels for tap in region_map.taps))
    return SpatialBlock(1, np.ones(len(region_map.taps), bool), np.ascontiguousarray(voxels), channels)


def tap_sums(region_map, level):
    return np.concatenate([tap.voxel_counts() * level for tap in region_map.taps])


def record(path, region_map=FULL, n=330, *, nan_at=None, frozen=(0, 0), metadata=None):
    """Write a recording; return its items and reports."""
    rng = np.random.default_rng(5)
    monitor = Monitor(region_map)
    names = tuple(tap.name for tap in region_map.taps)
    sink = RecordingSink(path, to_bytes(region_map), metadata or {"device": "car-7"}, names)
    told = []
    for i in range(n):
        nonfinite = np.zeros(len(names), np.int64)
        nonfinite[2] = i == nan_at
        item = StatRow(
            i,
            10**12 + i * 33_333_333,
            5_000_000,
            rng.uniform(0.9, 1.1, len(names)),
            nonfinite,
            frozen[0] if frozen[0] <= i < frozen[1] else i,
            spatial=block(region_map, rng),
            context={"speed_mps": 20.0},
            picture=rng.uniform(0.7, 0.9, region_map.taps[0].n_picture),
        )
        told.append(monitor.feed(item))
        sink.write(item, told[-1])
    sink.close()
    return told


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of either kind, parsed, with what the monitor said."""
    folder = tmp_path_factory.mktemp("pages")
    save_region_map(FULL, folder / "map.npz")
    told = record(folder / "drive.mcap", nan_at=200, frozen=(280, 300))
    for name in ("map.npz", "drive.mcap"):
        report(folder / name, folder / f"{name}.html")
    return folder, told


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures empty: most of a page's time goes into them."""
    monkeypatch.setattr(MplFigure, "savefig", lambda _, file, **__: file.write("<svg></svg>"))


def parsed(page):
    return Parsed(page if isinstance(page, str) else page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["map.npz.html", "drive.mcap.html"])
def test_a_page_is_well_formed_and_needs_nothing_else(pages, name):
    page = parsed(pages[0] / name)
    assert len(page.ids) == len(set(page.ids))
    assert page.references
    for reference in page.references:
        assert reference.startswith(("data:", "#"))
        if reference.startswith("#"):
            assert reference[1:] in page.ids
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    text = (pages[0] / name).read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", text)


@pytest.mark.parametrize(("name", "figures"), [("map.npz.html", 6), ("drive.mcap.html", 8)])
def test_a_browser_draws_every_figure_and_prints(pages, tmp_path, name, figures):
    page = pages[0] / name
    script = """
      for (const figure of document.querySelectorAll("figure svg")) {
        const box = figure.getBoundingClientRect();
        const drawn = figure.querySelectorAll("path, image, use, text").length;
        document.body.append(`SIZE ${box.width} ${box.height} ${drawn};`);
      }
      const outside = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:"));
      document.body.append(`OUTSIDE ${outside.length};`);
    """
    dom = measured(page, script)
    sizes = np.array(re.findall(r"SIZE ([\d.]+) ([\d.]+) (\d+);", dom), float)
    assert len(sizes) == figures
    assert (sizes > [600, 60, 20]).all()
    assert "OUTSIDE 0;" in dom
    # The page as it is, its own policy in force.
    pdf = tmp_path / "page.pdf"
    picture = screenshot(page, tmp_path / "page.png", f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) <= 30
    image = np.asarray(Image.open(picture).convert("RGB"))
    assert image.shape == (3000, 1100, 3)
    inked = (image < 250).any(axis=2)
    assert inked.mean() > 0.02
    assert all(part.any() for part in np.array_split(inked, 6))
    assert len(np.unique(image[::3, ::3].reshape(-1, 3), axis=0)) > 100  # colours, not only text


def number(cell):
    return np.nan if cell == "–" else float(cell.replace("−", "-"))


def test_the_numbers_of_a_map_are_on_its_page(pages):
    page = parsed(pages[0] / "map.npz.html")
    header, *rows = page.tables["theta"]
    assert header == ["tap", "group · row · column", "θ", "± sampling", "± images"]
    impact = FULL.impact
    known = np.flatnonzero(np.isfinite(impact.theta))
    order = known[np.argsort(-np.abs(impact.theta[known]))]
    assert len(rows) == len(order)
    assert rows[0][:2] == ["relu1", "1 · 0 · 1"]  # voxel 5 of 4 x 2 x 2
    np.testing.assert_allclose([number(row[2]) for row in rows], impact.theta[order], atol=6e-5)
    np.testing.assert_allclose([number(row[3]) for row in rows], impact.stderr[order], atol=6e-5)
    assert {row[4] for row in rows} == {"–"}  # one image: nothing is known
    data = page.data["theta.csv"][1:]
    np.testing.assert_allclose([float(row[3]) for row in data], impact.theta, rtol=1e-5)
    strength = [float(row[3]) for row in page.data["connectome.csv"][1:]]
    np.testing.assert_allclose(strength, FULL.tracts.strength, rtol=1e-5)
    log_power = np.array([row[1:6] for row in page.data["signatures.csv"][1:]], float)
    np.testing.assert_allclose(log_power, FULL.eeg.profile_mean / np.log(10), rtol=1e-5)


def test_the_certificate_of_a_map_is_on_its_page():
    checks = list(FULL.neutrality.taps)
    checks[0] = replace(checks[0], dtype="", max_difference=None, reason="keeps state")
    checks[1] = replace(checks[1], max_difference=0.25, tolerance=0.5)
    region_map = replace(FULL, neutrality=replace(FULL.neutrality, taps=tuple(checks)))
    page = Parsed(to_html(map_page(region_map, "map.npz")))
    rows = page.tables["neutrality"][1:]
    assert [row[0] for row in rows] == [tap.name for tap in FULL.taps[1:]]
    assert rows[0][1:4] == ["–", "–", "0"]
    assert rows[1][1:4] == ["float32", "0.25", "0.5"]
    assert [row[-1] for row in rows] == ["not compared", "equal within rounding", "equal"]
    assert f"equal on {FULL.neutrality.runtime}, CPUExecutionProvider" in page.text


def test_a_map_says_what_is_not_known(pages):
    page = parsed(pages[0] / "map.npz.html")
    assert "INCOMPLETE" in page.text
    assert "in 2 of 3 transitions" in page.text
    assert f"Tracts relu1 → clip2 are not known: {BROKEN}" in page.text
    assert "a remark of calibration" in page.text
    rows = page.tables["transitions"][1:]
    assert [row[1] for row in rows] == ["traced", BROKEN, "traced"]
    assert rows[1][3:5] == ["–", "0"]
    first = FULL.tracts.fidelity[: int(rows[0][2])]
    assert number(rows[0][3]) == pytest.approx(np.nanmedian(first), abs=0.006)
    assert int(rows[0][4]) == (first >= 0.9).sum()
    reliable = {row[-1] for row in page.tables["strongest"][1:]}
    assert reliable == {"yes", "no"}
    for row in page.tables["strongest"][1:]:
        assert (row[-1] == "yes") == (number(row[-2]) >= 0.895) or number(row[-2]) == 0.9


def test_a_map_without_impact_makes_up_no_numbers():
    page = parsed(to_html(map_page(MINIMAL, "m.npz")))
    assert "Impact scores are not computed" in page.text
    assert "in 0 of 3 transitions" in page.text
    assert "theta" not in page.tables
    assert "convergence.csv" not in page.data


def test_a_complete_map_is_called_complete(undrawn):
    evidence = replace(FULL.evidence, threshold=np.full(FULL.evidence.threshold.shape, 9.0))
    ones = np.ones(FULL.tracts.strength.size)
    traced = replace(FULL.tracts, strength=ones, fidelity=ones, scale=ones, problems=("", "", ""))
    whole = replace(FULL, evidence=evidence, tracts=traced)
    text = parsed(to_html(map_page(whole, "m.npz"))).text
    assert "COMPLETE" in text
    assert "INCOMPLETE" not in text
    scale = np.where(np.arange(ones.size) < FULL.taps[0].n_voxels * FULL.taps[1].n_voxels, np.nan, 1.0)
    vague = replace(whole, tracts=replace(traced, scale=scale))
    text = parsed(to_html(map_page(vague, "m.npz"))).text
    assert "INCOMPLETE" in text
    assert text.count("no live estimate follows them") == 1
    assert "Tracts input → relu1 are traced, but" in text


def test_a_map_of_which_nothing_is_known_can_be_drawn():
    nothing = np.full(FULL.theta.size, np.nan)
    impact = replace(
        FULL.impact, theta=nothing, history_pairs=np.zeros(0), history_theta=np.zeros((0, nothing.size))
    )
    tracts = replace(FULL.tracts, strength=FULL.tracts.strength * np.nan, problems=("", "", ""))
    eeg = replace(FULL.eeg, profile_mean=FULL.eeg.profile_mean * np.nan, profile_accuracy=None)
    unknown = replace(FULL, impact=impact, tracts=tracts, eeg=eeg, fmri=replace(FULL.fmri, scale=nothing))
    page = parsed(to_html(map_page(unknown, "m.npz")))
    assert page.text.count("no tract could be measured") == 3
    assert set(page.data["densities.csv"][1][4:]) == {"nan"}
    assert len(page.tables["theta"]) == len(page.tables["strongest"]) == 1  # their heads


def test_names_out_of_a_model_stay_text(tmp_path):
    hostile = renamed(FULL)
    record(tmp_path / "x.mcap", hostile, nan_at=20, n=40, metadata={"device": EVIL})
    for built in (map_page(hostile, EVIL), recording_page(tmp_path / "x.mcap")):
        html = to_html(built)
        assert "<script" not in html
        page = parsed(html)
        assert "script" not in page.tags
        assert EVIL in page.text
        assert EVIL in page.drawn  # and no mathematics, which dollar signs would make of it
    assert f"NaN or Inf in {EVIL}" in page.text


def test_a_flag_is_shown_with_its_freeze_frame(pages):
    folder, told = pages
    page = parsed(folder / "drive.mcap.html")
    assert (
        "2 flags were confirmed in 11.0 s (330 frames). NON_FINITE at 0:06: NaN or Inf in clip2." in page.text
    )
    assert "At the end health was FAIL." in page.text  # NON_FINITE is latched
    flags = page.tables["flags"][1:]
    assert [row[1] for row in flags] == ["NON_FINITE", "INPUT_FROZEN"]
    assert [row[-1] for row in flags] == ["still", "no more"]
    assert flags[0][4] == "0:06.6"
    around = page.tables["around-1"][1:]
    frames = [int(row[1]) for row in around]
    assert frames == [168, 184, 192, 196, 198, 199, 200, 201, 202, 204, 208, 216, 232]
    assert [row[0].split()[-1] for row in around][5:7] == ["WARMING", "FAIL"]
    assert around[6][2] == "+0.00"
    for row, frame in zip(around, frames, strict=True):
        np.testing.assert_allclose(
            [number(cell) for cell in row[3 : 3 + len(CHANNELS)]], told[frame].evidence.ratio, atol=0.006
        )


def test_voxels_of_a_freeze_frame_are_ranked_by_impact_times_z(pages):
    folder, told = pages
    confirmed = next(
        r for r in told if any(t.code == "INPUT_FROZEN" and t.after == "confirmed" for t in r.transitions)
    )
    z, theta = confirmed.regions.z, FULL.impact.theta
    worth = np.sort((np.abs(z) * np.abs(theta))[np.isfinite(z * theta)])[::-1]
    page = parsed(folder / "drive.mcap.html")
    rows = page.tables["voxels-2"][1:]
    np.testing.assert_allclose([number(row[-1]) for row in rows], worth[: len(rows)], atol=6e-5)
    data = page.data["where-2.csv"][1:]
    assert len(data) == np.isfinite(z).sum()  # the input's voxels too, whose worth nobody knows
    assert {row[-1] for row in data if row[0] == FULL.taps[0].name} == {"–"}


def test_the_order_of_causes_is_in_the_freeze_frame(pages, undrawn):
    """Wherever the root ranks, and one line for each that alarms."""
    seen, first = pages[1][100], FULL.taps[0].n_voxels
    root, under, alone = first + 5, first + 20, first + 21
    marked = np.zeros((2, FULL.theta.size), bool)
    marked[0, [root, under, alone]] = marked[1, under] = True
    connectivity = replace(seen.connectivity, alarming=marked[0], under=marked[1], root=root)
    seen = replace(seen, connectivity=connectivity)
    told = Transition(100, seen.t_ns, "CONNECTIVITY_ABNORMAL", "inactive", "confirmed", "cause")
    section = freeze_frame_section(FULL, 1, FreezeFrame(told, 3.3, [seen], 0, seen))
    assert dict(section.parts[0].pairs)["root cause"] == "relu1 [1, 0, 1]"
    roles = [row[:3] for row in csv.reader(section.parts[2].csv.splitlines()) if row[2]]
    places = {tuple(place_of(FULL.taps, voxel)): voxel for voxel in (root, under, alone)}
    assert {places[tap, place]: role for tap, place, role in roles} == {
        root: "◆ root",
        under: "under the root",
        alone: "alarms",
    }


def test_time_courses_hold_what_the_monitor_said(pages):
    folder, told = pages
    page = parsed(folder / "drive.mcap.html")
    z = np.array([report.regions.z for report in told])
    table = page.data["carpet.csv"]
    assert len(table[0]) == 1 + z.shape[1]
    found = np.array([[float(cell or "nan") for cell in row] for row in table[1:]])
    assert np.nanmax(found[:, 1:]) == pytest.approx(np.nanmax(z), abs=0.06)
    assert np.isnan(found[:, 1:]).any() == np.isnan(z).all(axis=0).any()
    power = [row[1:] for row in page.data["bands.csv"][1:]]
    assert set(power[0]) == {""}  # no window is full at the start: unknown, not 0
    assert all(power[-1])
    state = [row[1] for row in page.data["health.csv"][1:]]
    assert (state[0], state[-1]) == ("1", "5")


def test_silence_is_a_gap(tmp_path, undrawn):
    """Ten seconds without a frame, one tick at their end."""
    monitor, path = Monitor(MINIMAL), tmp_path / "x.mcap"
    sink = RecordingSink(path, to_bytes(MINIMAL), {}, [tap.name for tap in MINIMAL.taps])
    n = len(MINIMAL.taps)
    rows = [StatRow(i, i * 33_333_333, 1, np.full(n, 1.0 + i), np.zeros(n, np.int64), i) for i in range(30)]
    for item in [*rows, Tick(11 * 10**9)]:
        sink.write(item, monitor.feed(item))
    sink.close()
    page = parsed(to_html(recording_page(path)))
    assert "NO_FRAMES at 0:11: no frame arrives." in page.text
    state = [row[1] for row in page.data["health.csv"][1:]]
    assert state[-1] == "4"
    assert set(state[20:-1]) == {""}
    assert "◌\u00a0STALE" in page.text


def test_nothing_flagged(tmp_path, undrawn):
    record(tmp_path / "x.mcap", MINIMAL, n=300)
    page = parsed(to_html(recording_page(tmp_path / "x.mcap")))
    assert "Nothing was flagged in 10.0 s (300 frames)." in page.text
    assert "●\u00a0OK" in page.text
    assert "flags" not in page.tables
    record(tmp_path / "y.mcap", MINIMAL, n=30)
    page = parsed(to_html(recording_page(tmp_path / "y.mcap")))
    assert "Nothing was flagged in 1.0 s (30 frames), but health never went beyond WARMING." in page.text


def test_a_cut_recording_says_so(pages, tmp_path, undrawn):
    data = (pages[0] / "drive.mcap").read_bytes()
    whole = parsed(pages[0] / "drive.mcap.html").text
    (tmp_path / "cut.mcap").write_bytes(data[: len(data) * 2 // 3])
    page = parsed(to_html(recording_page(tmp_path / "cut.mcap")))
    assert "The recording is cut or damaged" in page.text
    assert "The recording is cut or damaged" not in whole
    assert "differ" not in whole


def test_reports_that_differ_are_counted(tmp_path, monkeypatch, undrawn):
    record(tmp_path / "x.mcap", MINIMAL, n=30)
    monkeypatch.setattr("edge_monitor.offline.replay.report_digest", lambda _: "another")
    page = parsed(to_html(recording_page(tmp_path / "x.mcap")))
    assert "30 of 30 reports differ from those recorded on the device." in page.text


def test_the_same_recording_gives_the_same_page(pages, tmp_path):
    folder, _ = pages
    again = report(folder / "drive.mcap", tmp_path / "again.html")
    assert digest(again) == digest(folder / "drive.mcap.html")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_page_holds_columns_not_frames(tmp_path):
    record(tmp_path / "x.mcap", FULL, n=1_700)
    page = report(tmp_path / "x.mcap", tmp_path / "x.html")
    assert page.stat().st_size < 2_000_000  # the promise for an hour, which has no more columns
    assert 400 <= len(parsed(page).data["carpet.csv"]) - 1 <= 800


def test_the_page_lies_in_the_current_folder(pages, tmp_path, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)
    assert report(pages[0] / "map.npz") == Path("map.html")
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]
    report(pages[0] / "map.npz")  # a page is replaced


@pytest.mark.parametrize(
    ("content", "error", "problem"),
    [
        (b"\x08\x07onnx", InputError, "is neither a region map nor a recording"),
        (b"", InputError, "is neither a region map nor a recording"),
        (None, InputError, "No such file or directory"),
        (b"PK\x03\x04 and nothing", MapError, "not a region map"),
        (b"\x89MCAP0\r\n", RecordingError, "was cut before the first input"),
    ],
)
def test_other_files_are_refused(tmp_path, content, error, problem):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=problem) as caught:
        report(path, tmp_path / "page.html")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_only_a_page_is_ever_overwritten(pages, tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("mine")
    for output, problem in (
        (target, "exists and is no HTML page"),
        (tmp_path, "exists and is no HTML page"),
        (tmp_path / "nowhere" / "page.html", "is no directory"),
    ):
        with pytest.raises(InputError, match=problem):
            report(pages[0] / "map.npz", output)
    assert target.read_text() == "mine"


def test_progress_is_told(tmp_path, undrawn):
    record(tmp_path / "x.mcap", MINIMAL, n=30)
    told = []
    report(tmp_path / "x.mcap", tmp_path / "x.html", lambda *words: told.append(words))
    assert told == [("replay", 30, 30)]


def test_another_process_gives_the_same_page_of_a_map(pages, tmp_path):
    command = [sys.executable, "-m", "edge_monitor.cli", "report", pages[0] / "map.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "wrote map.html\n"), done
    assert digest(tmp_path / "map.html") == digest(pages[0] / "map.npz.html")


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "x").write_text("?")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["edge-monitor", "report", "x"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == "error: x: is neither a region map nor a recording"


def test_pictures_are_inline(pages):
    """The carpet is an image inside its SVG, as data that decodes."""
    text = (pages[0] / "drive.mcap.html").read_text(encoding="utf-8")
    images = re.findall(r'href="data:image/png;base64,([^"]+)"', text)
    assert len(images) > len(FULL.taps)
    assert all(base64.b64decode(re.sub(r"\s", "", data)).startswith(b"\x89PNG") for data in images)
