import io
import json
import os
import threading
from queue import SimpleQueue

import handmade
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mcap.reader import make_reader
from mcap.writer import Writer
from msgspec.structs import asdict, replace

from edge_monitor.digest import report_digest
from edge_monitor.errors import InputError, RecordingError
from edge_monitor.reports import CHANNELS, FaultGuess, HealthState
from edge_monitor.sinks import recording as recording_sink
from edge_monitor.sinks.queued import QueuedSink
from edge_monitor.sinks.recording import RecordingSink
from edge_monitor.sources.recording import RecordingReader
from edge_monitor.types import OutputSummary, ProbeEvent, SpatialBlock, StatRow, Tick

TAPS = ("input", "/conv1/Relu_output_0", "relu 2")
METADATA = {"device": "car-7", "model": "resnet8"}
REGION_MAP = b"not really a map \x00\xff" * 50
N_VOXELS, N_CHANNELS = 5, 7
RATIOS = [0.1, np.nan, 0.3, 0.4, 0.5, 0.6, np.nan, 0.7, 0.8, 0.9, np.nan]


def full_row(frame=0, rng=None, **fields):
    rng = rng or np.random.default_rng(frame)
    row = StatRow(
        frame,
        1_000_000_000 + frame * 33_333_333,
        140_000,
        rng.random(len(TAPS)),
        np.zeros(len(TAPS), np.int64),
        int(rng.integers(0, 2**64, dtype=np.uint64)),
        spatial=SpatialBlock(1, np.ones(3, bool), rng.normal(size=(N_VOXELS, 3)), rng.random(N_CHANNELS)),
        output=OutputSummary(3, 0.75, 0.5, 0),
        picture=np.r_[rng.random(12), np.nan, 0.25],
    )
    return replace(row, **fields)


def full_report(item, **fields):
    """A report that depends on the item, so that mixed up digests show."""
    views = {}
    if isinstance(item, StatRow):
        power = np.outer(item.signals, np.arange(1.0, 6.0))
        power[0, 4] = np.nan
        density = np.array([1.0, np.nan, 3.0])
        views = {
            "bands": replace(handmade.bands(power, 0.5), state=np.array([0, -1, 4])),
            "regions": replace(handmade.regions(1.5, None), density=density, tap_score=density, worst=2),
            "connectivity": handmade.connectivity([np.nan, 1.5, 0.5], 1),
            "consistency": handmade.consistency(0.7),
            "evidence": handmade.evidence(RATIOS),
        }
    flags = [handmade.flag("NON_FINITE"), handmade.flag("INPUT_FROZEN")]
    return replace(handmade.report(flags=flags, **views, **fields), t_ns=item.t_ns)


def record(path, pairs, lost=()):
    sink = RecordingSink(path, REGION_MAP, METADATA, TAPS)
    for i, (item, report) in enumerate(pairs):
        if i in lost:
            sink.lost(2)
        sink.write(item, report)
    sink.close()


def drive(n):
    """Rows with a tick and an event among them."""
    items = [full_row(frame) for frame in range(n)]
    items.insert(n // 2, Tick(items[n // 2].t_ns))
    items.insert(n // 3, ProbeEvent(items[n // 3].t_ns, "PROBE_DETACHED", 'why? "NaN"\n<θ>'))
    return [(item, full_report(item)) for item in items]


def exact(value):
    """A value as something that is equal only when every bit is (all NaN being alike)."""
    if isinstance(value, np.ndarray):
        same = np.where(np.isnan(value), np.nan, value) if value.dtype.kind == "f" else value
        return value.dtype, value.shape, same.tobytes()
    if isinstance(value, float):
        return exact(np.array(value))
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    if hasattr(value, "__struct_fields__"):
        return type(value), exact(asdict(value))
    return value


def messages(path):
    """Every message of a file: (channel, schema, JSON text)."""
    with path.open("rb") as file:
        found = list(make_reader(file).iter_messages(log_time_order=False))
    return [(channel.topic, json.loads(schema.data), message.data) for schema, channel, message in found]


anything = st.floats(width=64)
integers = st.integers(-(2**63), 2**63 - 1)
names = st.text(st.characters(codec="utf-8"), max_size=8)


@st.composite
def rows(draw):
    n = draw(st.integers(0, 4))
    floats = lambda *shape: draw(arrays(np.float64, shape, elements=anything))  # noqa: E731
    finite = st.none() | st.floats(allow_nan=False, allow_infinity=False)
    spatial = output = None
    if draw(st.booleans()):
        taps = draw(arrays(np.bool_, n))
        spatial = SpatialBlock(draw(st.integers(0, 8)), taps, floats(2 * n, 3), floats(3 * n))
    if draw(st.booleans()):
        output = OutputSummary(draw(integers), draw(finite), draw(finite), draw(st.integers(0, 9)))
    return StatRow(
        draw(integers),
        draw(st.integers(0, 2**63 - 1)),
        draw(integers),
        floats(n),
        draw(arrays(np.int64, n)),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.none() | integers),
        spatial,
        output,
        draw(st.dictionaries(names, anything, max_size=3)),
        draw(st.none() | arrays(np.float64, st.integers(0, 30), elements=anything)),
    )


other = st.builds(Tick, st.integers(0, 2**63 - 1)) | st.builds(
    ProbeEvent, st.integers(0, 2**63 - 1), names, names
)


WILD = full_row(
    signals=np.array([np.nan, np.inf, -np.inf]),
    t_capture_ns=5,
    context={"speed_mps": 3.5, "gear": np.nan, "": -np.inf},
)


@example(items=[WILD])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(rows() | other, min_size=1, max_size=4))
def test_every_input_comes_back_bit_for_bit(tmp_path, items):
    path = tmp_path / "x.mcap"
    path.unlink(missing_ok=True)
    reports = [replace(handmade.report(), t_ns=item.t_ns) for item in items]
    record(path, zip(items, reports, strict=True))
    got = list(RecordingReader(path).items())
    assert [exact(item) for item, _ in got] == [exact(item) for item in items]
    assert [digest for _, digest in got] == [report_digest(report) for report in reports]


def test_a_recording_is_complete_in_itself(tmp_path):
    pairs = drive(100)
    record(tmp_path / "x.mcap", pairs)
    reader = RecordingReader(tmp_path / "x.mcap")
    assert reader.metadata == METADATA
    assert reader.region_map_bytes() == REGION_MAP
    for _ in range(2):  # as often as one likes
        got = list(reader.items())
        assert [digest for _, digest in got] == [report_digest(report) for _, report in pairs]
        assert [type(item) for item, _ in got] == [type(item) for item, _ in pairs]
    assert (reader.truncated, reader.lost) == (False, 0)


def test_order_is_that_of_the_inputs_not_of_their_clocks(tmp_path):
    items = [Tick(t_ns) for t_ns in (5, 3, 10**12, 4)]
    record(tmp_path / "x.mcap", [(item, full_report(item)) for item in items])
    assert [item for item, _ in RecordingReader(tmp_path / "x.mcap").items()] == items


def test_without_a_region_map(tmp_path):
    sink = RecordingSink(tmp_path / "x.mcap", b"", METADATA, TAPS)
    sink.write(Tick(1), full_report(Tick(1)))
    sink.close()
    with pytest.raises(RecordingError, match="holds no region map"):
        RecordingReader(tmp_path / "x.mcap").region_map_bytes()


def test_losses_are_part_of_the_recording(tmp_path):
    record(tmp_path / "x.mcap", drive(5), lost={1, 4})
    reader = RecordingReader(tmp_path / "x.mcap")
    seen = [reader.lost for _ in reader.items()]
    assert seen == [0, 2, 2, 2, 4, 4, 4]


# What viewers can read.


def check_schema(schema):
    """The subset of JSON Schema that Foxglove, Lichtblick and PlotJuggler understand."""
    assert schema["type"] == "object"
    assert set(schema) <= {"type", "title", "properties"}
    for name, field in schema["properties"].items():
        if "oneOf" in field:
            assert set(field) == {"type", "oneOf"}, name
            assert all(set(choice) == {"title", "const"} for choice in field["oneOf"]), name
            assert [choice["const"] for choice in field["oneOf"]] == list(range(len(field["oneOf"]))), name
        elif field["type"] == "object":
            assert name == "timestamp"
            check_schema(field)
        elif field["type"] == "array":
            assert set(field) == {"type", "items"}, name
            assert set(field["items"]) == {"type"}, name
            assert field["items"]["type"] in PLAIN, name
        else:
            assert set(field) == {"type"}, name
            assert field["type"] in PLAIN, name


PLAIN = {"integer": {int}, "number": {int, float}, "boolean": {bool}, "string": {str}}


def check_message(schema, message):
    for name, value in message.items():
        field = schema["properties"][name]
        if field["type"] == "object":
            check_message(field, value)
        elif field["type"] == "array":
            assert {type(item) for item in value} <= PLAIN[field["items"]["type"]], name
        else:
            assert type(value) in PLAIN[field["type"]], name
        if "oneOf" in field:
            assert value in {choice["const"] for choice in field["oneOf"]}, name


def no_constant(text):
    pytest.fail(f"{text} is no JSON")


def test_schemas_are_flat_and_messages_keep_to_them(tmp_path):
    loud = full_report(WILD, transitions=[handmade.transition(ratio=2.0)], state=HealthState.WARN)
    record(tmp_path / "x.mcap", [*drive(30), (WILD, loud)], lost={3})
    found = messages(tmp_path / "x.mcap")
    assert {topic for topic, _, _ in found} == {
        *("/row", "/tick", "/event", "/digest", "/lost", "/health", "/regions", "/connectivity", "/log"),
        *("/taps/input/bands", "/taps/conv1/Relu_output_0/bands", "/taps/relu 2/bands"),
    }
    for topic, schema, data in found:
        check_schema(schema)
        message = json.loads(data, parse_constant=no_constant)
        assert None not in message.values(), topic
        check_message(schema, message)


def test_views_say_what_the_report_said(tmp_path):
    item = full_row()
    report = full_report(item, transitions=[handmade.transition(7, "NON_FINITE", ratio=2.0)])
    record(tmp_path / "x.mcap", [(item, report)])
    found = {topic: json.loads(data) for topic, _, data in messages(tmp_path / "x.mcap")}
    health = found["/health"]
    assert (health["state"], health["flag_NON_FINITE"], health["temporal_score"]) == (0, True, 0.5)
    ratios = {f"evidence_{channel}": x for channel, x in zip(CHANNELS, RATIOS, strict=True) if x == x}
    assert {name: x for name, x in health.items() if name.startswith("evidence_")} == ratios
    bands = found["/taps/input/bands"]
    assert bands["delta"] == report.bands.power[0, 0]
    assert (bands["state"], "gamma" in bands) == (0, False)
    assert "state" not in found["/taps/conv1/Relu_output_0/bands"]
    assert found["/regions"]["density"] == [1.0, 0.0, 3.0]
    assert found["/regions"]["density_nan"] == [1]
    assert "input_score" not in found["/regions"]
    connectivity = found["/connectivity"]
    assert (connectivity["residual"], connectivity["residual_nan"]) == ([0.0, 1.5, 0.5], [0])
    assert (connectivity["root"], connectivity["alarming"], connectivity["under"]) == (1, [1], [1])
    assert (connectivity["weakest_source"], connectivity["weakest_target"]) == (0, 2)
    assert (connectivity["tract_score"], "residual_score" in connectivity) == (2.5, False)
    assert found["/log"]["timestamp"] == {"sec": 0, "nsec": 231_000_000}
    assert found["/log"]["message"] == 'NON_FINITE inactive->confirmed "cause 7" frame=7 ratio=2'


def test_views_come_at_5_hz_and_health_at_every_change(tmp_path):
    def reports():
        for frame in range(31):
            item = full_row(frame, t_ns=frame * 33_333_334)
            yield item, full_report(item, state=HealthState.WARN if frame in (8, 9, 10) else HealthState.OK)

    record(tmp_path / "x.mcap", reports())
    topics = [topic for topic, _, _ in messages(tmp_path / "x.mcap")]
    assert topics.count("/row") == topics.count("/digest") == 31
    views = ("/regions", "/connectivity", "/taps/input/bands")
    assert [topics.count(topic) for topic in views] == [6, 6, 6]  # frames 0, 6, 12, ...
    assert topics.count("/health") == 6 + 2


# Cuts and damage.


@pytest.fixture(scope="module")
def long_drive(tmp_path_factory):
    """A recording of several chunks: its bytes, what it holds, and where each chunk ends."""
    path = tmp_path_factory.mktemp("drive") / "x.mcap"
    pairs = drive(150)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording_sink, "CHUNK_BYTES", 8 * 1024)
        record(path, pairs)
    with path.open("rb") as file:
        chunks = make_reader(file).get_summary().chunk_indexes
    ends = [chunk.chunk_start_offset + chunk.chunk_length for chunk in chunks]
    return path.read_bytes(), contents(pairs), ends


def contents(pairs):
    return [(exact(item), report_digest(report)) for item, report in pairs]


def is_start(got, true):
    return [(exact(item), digest) for item, digest in got] == true[: len(got)]


def read_cut(tmp_path, data):
    path = tmp_path / "cut.mcap"
    path.write_bytes(data)
    reader = RecordingReader(path)
    return reader, list(reader.items())


def test_a_file_cut_anywhere_gives_all_but_its_last_chunk(tmp_path, long_drive):
    data, true, ends = long_drive
    assert len(ends) > 5
    whole = [len(read_cut(tmp_path, data[:end])[1]) for end in ends]
    assert whole == sorted(set(whole))
    assert whole[-1] == len(true)
    rng = np.random.default_rng(1)
    near = [end + step for end in ends for step in (-1, 1)]
    for cut in [*near, len(data) - 1, *rng.integers(0, len(data), 60)]:
        complete = sum(end <= cut for end in ends)
        if complete == 0:
            with pytest.raises(RecordingError, match=r"was cut before the first|is no MCAP|is an empty"):
                read_cut(tmp_path, data[:cut])
            continue
        reader, got = read_cut(tmp_path, data[:cut])
        assert reader.truncated
        assert len(got) == whole[complete - 1]
        assert is_start(got, true)
        assert reader.region_map_bytes() == REGION_MAP


def test_damage_never_gives_a_wrong_input(tmp_path, long_drive):
    data, true, ends = long_drive
    body = data.index(REGION_MAP) + len(REGION_MAP) + 4  # a map is checked by whoever loads it
    rng = np.random.default_rng(2)
    shortened = 0
    for place in rng.integers(body, ends[-1], 150):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        try:
            reader, got = read_cut(tmp_path, damaged)
        except RecordingError:
            continue
        assert is_start(got, true), place
        assert reader.truncated or len(got) == len(true), place
        shortened += reader.truncated
    assert shortened > 50


def test_a_missing_chunk_is_noticed(tmp_path, long_drive):
    data, true, _ = long_drive
    with io.BytesIO(data) as file:
        chunk = make_reader(file).get_summary().chunk_indexes[2]
    holed = bytearray(data)
    holed[chunk.chunk_start_offset] = 0x7F  # a kind of record that readers have to skip
    reader, got = read_cut(tmp_path, holed)
    assert reader.truncated
    assert 0 < len(got) < len(true)
    assert is_start(got, true)


def test_a_power_cut_takes_seconds_at_most(tmp_path):
    path = tmp_path / "x.mcap"
    sink = RecordingSink(path, REGION_MAP, METADATA, TAPS)
    for second in range(20):
        sink.write(Tick(second * 10**9), full_report(Tick(second * 10**9)))
        if second:
            on_disk = path.with_name("copy")
            on_disk.write_bytes(path.read_bytes())
            saved = len(list(RecordingReader(on_disk).items())) if second >= 5 else 0
            assert saved == second - second % 5 + (second >= 5)
    sink.close()


def test_what_is_no_recording(tmp_path):
    def problem(data):
        path = tmp_path / "x.mcap"
        path.write_bytes(data)
        with pytest.raises(RecordingError) as caught:
            RecordingReader(path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
        return caught.value.problem

    def foreign(metadata, message=True):
        file = io.BytesIO()
        writer = Writer(file)
        writer.start()
        if metadata is not None:
            writer.add_metadata("edge_monitor", metadata)
        if message:
            writer.add_message(writer.register_channel("/x", "json", 0), 0, b"{}", 0)
        writer.finish()
        return file.getvalue()

    assert problem(b"") == "is an empty file"
    assert problem(b"PK\x03\x04" * 9) == "is no MCAP file"
    assert problem(foreign(None)) == "is an MCAP file, but no recording of a monitor"
    assert problem(foreign({"recording_format": "9"})) == "has recording format 9, not 1"
    assert problem(foreign({"recording_format": "1"}, message=False)) == "holds no input"
    for path in (tmp_path / "missing.mcap", tmp_path):
        with pytest.raises(RecordingError, match="cannot be read"):
            RecordingReader(path)


def test_a_message_that_does_not_fit_its_channel(tmp_path):
    path = tmp_path / "x.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        writer.add_metadata("edge_monitor", {"recording_format": "1"})
        writer.add_message(writer.register_channel("/row", "json", 0), 0, b'{"frame": 1}', 0)
        writer.finish()
    with pytest.raises(RecordingError, match="/row message 0 cannot be read"):
        list(RecordingReader(path).items())


# A recording that cannot be written.


def no_space(*_):
    raise OSError(28, os.strerror(28))


def test_refused_places(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot record there: No such file or directory"):
        RecordingSink(tmp_path / "missing" / "x.mcap", REGION_MAP, METADATA, TAPS)
    path = tmp_path / "x.mcap"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match="never overwritten"):
        RecordingSink(path, REGION_MAP, METADATA, TAPS)
    assert path.read_bytes() == b"precious"
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError, match="recording ended: No space left"):
        RecordingSink(tmp_path / "y.mcap", REGION_MAP, METADATA, TAPS)
    assert not (tmp_path / "y.mcap").exists()


def run_all(calls):
    for call in calls:
        call()


@pytest.mark.parametrize("when", ["write", "close"])
def test_a_full_disk_ends_the_recording_which_stays_readable(tmp_path, monkeypatch, when):
    monkeypatch.setattr(recording_sink, "CHUNK_BYTES", 16 * 1024)
    path = tmp_path / "x.mcap"
    sink = RecordingSink(path, REGION_MAP, METADATA, TAPS)
    pairs = drive(120)
    for item, report in pairs[:60]:
        sink.write(item, report)
    monkeypatch.setattr(os, "fsync", no_space)
    rest = [sink.close] if when == "close" else [lambda pair=pair: sink.write(*pair) for pair in pairs[60:]]
    with pytest.raises(InputError, match="recording ended: No space left"):
        run_all(rest)
    with pytest.raises(InputError, match="recording ended: No space left"):
        sink.write(*pairs[0])
    sink.close()
    got = list(RecordingReader(path).items())
    assert len(got) >= 30
    assert is_start(got, contents(pairs))


# The queue.


class Obedient:
    """A slow sink that does what a test tells it."""

    def __init__(self):
        self.go, self.entered = threading.Event(), threading.Event()
        self.calls = []
        self.errors = []
        self.done = SimpleQueue()

    def lost(self, count):
        self.calls.append(("lost", count))

    def write(self, item, report):
        self.entered.set()
        self.go.wait()
        if self.errors:
            raise self.errors.pop()
        self.calls.append(item.t_ns)
        self.done.put(item.t_ns)

    def close(self):
        self.calls.append("closed")


def test_a_stuck_sink_delays_nobody_and_losses_are_counted():
    inner = Obedient()
    queued = QueuedSink(inner, capacity=3)
    queued.write(Tick(0), handmade.report())
    assert inner.entered.wait(10)  # stuck with the first
    for t in range(1, 10):
        queued.write(Tick(t), handmade.report())
    assert queued.dropped == 6
    inner.go.set()
    queued.close(10)
    assert inner.calls == [0, 1, 2, 3, "closed"]
    queued.write(Tick(10), handmade.report())
    assert queued.dropped == 7
    assert queued.error is None


def test_a_sink_learns_what_it_missed():
    inner = Obedient()
    queued = QueuedSink(inner, capacity=1)
    queued.write(Tick(0), handmade.report())
    assert inner.entered.wait(10)
    for t in (1, 2, 3):  # one waits, two are dropped
        queued.write(Tick(t), handmade.report())
    inner.go.set()
    assert [inner.done.get(timeout=10) for _ in range(2)] == [0, 1]
    for t in (4, 5):
        queued.write(Tick(t), handmade.report())
        assert inner.done.get(timeout=10) == t
    queued.close(10)
    assert inner.calls == [0, 1, ("lost", 2), 4, 5, "closed"]


def test_errors_are_noted_and_the_next_input_is_tried():
    inner = Obedient()
    inner.go.set()
    inner.errors = [ValueError("third"), OSError(5, "second"), KeyError()]
    queued = QueuedSink(inner)
    for t in range(5):
        queued.write(Tick(t), handmade.report())
    queued.close(10)
    assert inner.calls == [("lost", 1), ("lost", 1), ("lost", 1), 3, 4, "closed"]
    assert (queued.failed, queued.error, queued.dropped) == (3, "third", 0)


def test_close_does_not_wait_for_ever():
    inner = Obedient()
    queued = QueuedSink(inner)
    for t in range(3):
        queued.write(Tick(t), handmade.report())
    assert inner.entered.wait(10)
    queued.close(0.01)
    assert queued.error == "not done 0.01 s after closing, 2 inputs waiting"
    inner.go.set()
    queued.close(10)
    assert inner.calls == [0, 1, 2, "closed"]


def test_an_error_in_closing_is_noted():
    class Dying(Obedient):
        def close(self):
            raise RuntimeError

    queued = QueuedSink(Dying())
    queued.close(10)
    assert (queued.failed, queued.error) == (1, "RuntimeError")


def test_a_dying_recording_behind_its_queue_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(recording_sink, "CHUNK_BYTES", 1)
    queued = QueuedSink(RecordingSink(tmp_path / "x.mcap", REGION_MAP, METADATA, TAPS))
    monkeypatch.setattr(os, "fsync", no_space)
    for item, report in drive(10):
        queued.write(item, report)
    queued.close(10)
    assert queued.failed == 12
    assert queued.error == f"{tmp_path / 'x.mcap'}: recording ended: No space left on device"


# The digest.


def test_equal_reports_have_equal_digests():
    assert report_digest(full_report(full_row())) == report_digest(full_report(full_row()))


@pytest.mark.parametrize(
    "change",
    [
        {"frame": 1},
        {"state": HealthState.WARN},
        {"reasons": ("x",)},
        {"flags": ()},
        {"flags": (handmade.flag("NON_FINITE", ratio=1.0), handmade.flag("INPUT_FROZEN"))},
        {"transitions": (handmade.transition(),)},
        {"bands": None},
        {"consistency": handmade.consistency(np.nextafter(0.7, 1.0))},
        {"vitals": handmade.vitals(rate_hz=None)},
        {"connectivity": handmade.connectivity([np.nan, 1.5, np.nextafter(0.5, 1.0)], 1)},
        {"connectivity": handmade.connectivity([np.nan, 1.5, 0.5], None)},
        {"evidence": handmade.evidence([*RATIOS[:-2], np.nextafter(0.9, 1.0), np.nan])},
        {"evidence": handmade.evidence([*RATIOS[:-1], np.inf])},
        {"evidence": handmade.evidence(np.reshape(RATIOS, (1, 11)))},
        {"evidence": replace(handmade.evidence(RATIOS), overexposed=True)},
        {"guess": FaultGuess(1.0, "blur", 0.9, None)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_difference_shows_in_the_digest(change):
    report = full_report(full_row())
    assert report_digest(replace(report, **change)) != report_digest(report)


def test_nan_are_alike_whatever_their_bits():
    strange = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    plain = np.full(2, np.nan)
    reports = [replace(full_report(full_row()), evidence=handmade.evidence(x)) for x in (strange, plain)]
    assert report_digest(reports[0]) == report_digest(reports[1])


def test_numbers_of_numpy_count_as_numbers():
    report = full_report(full_row())
    alike = replace(report, consistency=handmade.consistency(np.float64(0.7)), frame=np.int64(0))
    assert report_digest(alike) == report_digest(report)
