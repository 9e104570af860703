import math
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from handmade import bands, consistency, evidence, flag, regions, report, row, vitals
from msgspec.structs import asdict, replace

from edge_monitor.errors import InputError
from edge_monitor.flag_table import FLAGS
from edge_monitor.reports import FlagStatus, HealthState
from edge_monitor.service import Watch
from edge_monitor.sinks.health_page import HealthPageSink
from edge_monitor.sinks.health_page_layout import FIELDS, LENGTH, SIZE
from edge_monitor.sinks.health_page_reader import HealthPageReader, Page, PageStatus
from edge_monitor.types import SpatialBlock, Tick

DATA_ID = 0xE0A1B2C3
HEADER_DIR = Path(__file__).parents[1] / "firmware_configs"
LATE = 60 * 10**9
PAYLOAD = 16  # where it starts: 4 bytes of sequence, 12 of E2E header


@pytest.fixture
def path(tmp_path):
    return tmp_path / "page"


@pytest.fixture
def sink(path):
    sink = HealthPageSink(path, DATA_ID)
    yield sink
    sink.close()


@pytest.fixture
def reader(sink, path):
    reader = HealthPageReader(path, DATA_ID, LATE)
    yield reader
    reader.close()


def now(frame=0, age_ns=0, **fields):
    return replace(report(frame, **fields), t_ns=time.monotonic_ns() - age_ns)


def full_report():
    flags = [flag(r.code, FlagStatus.INACTIVE) for r in FLAGS]
    for i in (2, 4):  # a failure behind which a mere warning stands
        flags[i] = flag(FLAGS[i].code)
    return now(
        1234567890123,
        state=HealthState.FAIL,
        flags=flags,
        vital=vitals(latency_ns=4_500_000, rate_hz=29.97),
        bands=bands([[1.0]], 0.1),
        regions=regions(1e-300, 2.5),
        consistency=replace(consistency(0.75), agreement=0.5),
        evidence=evidence([math.nan, 0.1, 1.2, 0.2, 1.7, math.nan, 0.3, 0.4, 0.5, 0.6]),
    )


def test_layout_is_small_aligned_and_named_alike():
    assert SIZE == PAYLOAD + struct.calcsize("<" + "".join(code for _, code in FIELDS)) <= 512
    assert tuple(name for name, _ in FIELDS) == ("format", *Page.__struct_fields__)
    offset = PAYLOAD
    for name, code in FIELDS:
        width = 1 if code.endswith("s") else struct.calcsize(code)
        assert offset % width == 0, name
        offset += struct.calcsize("<" + code)


def test_a_reader_gets_what_was_reported(sink, reader):
    said = full_report()
    sink.step_ns, sink.dropped_rows, sink.dropped_records = 61e3, 3, 2**40
    sink.write(row(), said)
    status, page = reader.read().status, reader.read().page
    assert status is PageStatus.OK
    known = {name: value for name, value in asdict(page).items() if name != "instance"}
    assert known == {
        "state": HealthState.FAIL,
        "content_counter": 1,
        "frame": 1234567890123,
        "t_ns": said.t_ns,
        "flags": 0b10100,
        "temporal_score": 0.1,
        "spatial_score": 1e-300,
        "input_score": 2.5,
        "evidence_ratio": 1.7,
        "consistency": 0.75,
        "agreement": 0.5,
        "rate_hz": 29.97,
        "latency_ns": 4_500_000,
        "step_ns": 61e3,
        "dropped_rows": 3,
        "dropped_records": 2**40,
        "scanned_taps": 0,
        "scan_period": 0,
        "worst_flag": "ACTIVATIONS_STALE",
    }


def test_what_the_probe_still_scans_is_on_the_page(sink, reader):
    """Taps of the last block, and how many frames lie between it and the one before."""

    def scanned(frame, taps=None):
        voxels, channels = np.zeros((2, 3)), np.zeros(2)
        block = None if taps is None else SpatialBlock(1, np.array(taps), voxels, channels)
        sink.write(replace(row(frame), spatial=block), now())
        page = reader.read().page
        return page.scanned_taps, page.scan_period

    assert scanned(0) == (0, 0)
    assert scanned(1, [True, True]) == (2, 0)
    assert scanned(2, [True, True]) == (2, 1)
    assert scanned(3) == (2, 1)
    assert scanned(6, [False, True]) == (1, 4)
    assert scanned(0, [False, True]) == (1, 0)  # the stream began anew


def test_the_worst_flag_is_the_most_severe_not_the_first(sink, reader):
    warning = next(r.code for r in FLAGS if r.severity is HealthState.WARN)
    failure = next(r.code for r in FLAGS if r.severity is HealthState.FAIL)
    sink.write(row(), now(flags=[flag(warning), flag(failure), flag("HEALED", FlagStatus.HEALED)]))
    page = reader.read().page
    assert (page.worst_flag, page.flags) == (failure, 0b011)


@pytest.mark.parametrize("i", range(len(FLAGS)))
def test_every_flag_has_a_bit_and_a_name_that_fits(sink, reader, i):
    flags = [
        flag(r.code, FlagStatus.CONFIRMED if k == i else FlagStatus.PENDING) for k, r in enumerate(FLAGS)
    ]
    sink.write(row(), now(flags=flags))
    page = reader.read().page
    assert (page.flags, page.worst_flag) == (1 << i, FLAGS[i].code)


def test_unknown_numbers_are_nan(sink, reader):
    sink.write(Tick(1), now(-1, vital=vitals(rate_hz=None), evidence=evidence([math.nan] * 10)))
    page = reader.read().page
    names = [name for name, code in FIELDS if code == "d"]
    assert len(names) == 8
    assert all(math.isnan(getattr(page, name)) for name in names)
    assert (page.frame, page.flags, page.worst_flag) == (-1, 0, "")


def test_frozen_input_is_no_new_content_but_every_write_is_seen(sink, reader):
    seen = []
    inputs = [row(0), row(1), Tick(5), replace(row(2), fingerprint=9), replace(row(3), fingerprint=9), row(4)]
    for item in inputs:
        sink.write(item, now())
        reading = reader.read()
        seen.append((reading.status, reading.page.content_counter))
    assert seen == [(PageStatus.OK, counter) for counter in (1, 1, 1, 2, 2, 3)]


def test_counter_wraps_without_a_repeat(sink, reader):
    for _ in range(2**16 + 2):
        sink.write(row(), now())
    assert reader.read().status is PageStatus.OK
    sink.write(row(), now())
    assert reader.read().status is PageStatus.OK


def test_repeated(sink, reader):
    sink.write(row(), now())
    assert [reader.read().status for _ in range(3)] == [PageStatus.OK] + [PageStatus.REPEATED] * 2
    sink.write(row(), now())
    assert reader.read().status is PageStatus.OK


@pytest.mark.parametrize("age_ns", [LATE + 1, -LATE], ids=["old", "before a reboot"])
def test_stale(sink, reader, age_ns):
    sink.write(row(), now(frame=5, age_ns=age_ns))
    assert reader.read().status is PageStatus.STALE
    assert reader.read().page.frame == 5


def test_a_page_ages_when_nobody_writes(sink, path):
    reader = HealthPageReader(path, DATA_ID, 0)
    sink.write(row(), now(age_ns=1))
    assert reader.read().status is PageStatus.STALE
    reader.close()


def test_foreign(sink, reader, path):
    assert reader.read().status is PageStatus.FOREIGN  # nothing written yet
    sink.write(row(), now())
    other = HealthPageReader(path, DATA_ID + 1, LATE)
    assert other.read().status is PageStatus.FOREIGN
    assert other.read().page is None
    other.close()


@pytest.mark.parametrize("length", [0, LENGTH - 8, LENGTH + 8])
def test_another_length_is_foreign(sink, reader, path, length):
    sink.write(row(), now())
    with path.open("r+b") as file:
        file.seek(4)
        file.write(length.to_bytes(2, "big"))
    assert reader.read().status is PageStatus.FOREIGN


def test_another_format_is_foreign(path, monkeypatch):
    monkeypatch.setattr("edge_monitor.sinks.health_page.FORMAT", 1)
    sink = HealthPageSink(path, DATA_ID)
    sink.write(row(), now())
    monkeypatch.undo()
    reader = HealthPageReader(path, DATA_ID, LATE)
    assert reader.read().status is PageStatus.FOREIGN
    reader.close()
    sink.close()


def test_a_flipped_bit_anywhere_is_noticed(sink, reader, path):
    sink.write(row(), full_report())
    sound = path.read_bytes()
    for place in range(4, SIZE):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        expected = PageStatus.FOREIGN if place in (4, 5) else PageStatus.CORRUPT
        assert reader.read().status is expected, place
    path.write_bytes(sound)
    assert reader.read().status is PageStatus.OK


def test_a_writer_that_died_while_writing_leaves_a_torn_page(path):
    first = HealthPageSink(path, DATA_ID)
    first.write(row(), now(frame=1))
    first.close()
    reader = HealthPageReader(path, DATA_ID, LATE)
    inode = path.stat().st_ino
    page = bytearray(path.read_bytes())
    page[0] |= 1
    page[PAYLOAD : PAYLOAD + 50] = bytes(50)
    path.write_bytes(page)
    assert reader.read() == reader.read()
    assert reader.read().status is PageStatus.TORN

    second = HealthPageSink(path, DATA_ID)
    assert reader.read().status is PageStatus.TORN
    second.write(row(), now(frame=2))
    reading = reader.read()  # through the mapping made before the restart
    assert (reading.status, reading.page.frame) == (PageStatus.OK, 2)
    assert path.stat().st_ino == inode
    second.close()
    reader.close()


def test_the_sequence_is_odd_exactly_while_the_block_is_written(sink, path):
    seen = []

    class Target:
        def __setitem__(self, where, block):
            seen.append(path.read_bytes()[0] & 1)
            block_of_the_page[where] = block

        def release(self):
            block_of_the_page.release()

    block_of_the_page, sink._target = sink._target, Target()
    for written in range(3):
        assert path.read_bytes()[:4] == (2 * written).to_bytes(4, "little")
        sink.write(row(), now())
    assert seen == [1, 1, 1]


def test_a_reader_looks_again_before_it_despairs(sink, reader, monkeypatch):
    sink.write(row(), now())
    disturbed = [(PageStatus.TORN, b"")] * 3 + [(PageStatus.CORRUPT, b"")] * 4
    look = reader._snapshot
    monkeypatch.setattr(reader, "_snapshot", lambda: disturbed.pop() if disturbed else look())
    assert reader.read().status is PageStatus.OK


def test_a_restart_is_no_repeat(path):
    sink = HealthPageSink(path, DATA_ID)
    sink.write(row(), now())
    reader = HealthPageReader(path, DATA_ID, LATE)
    instance = reader.read().page.instance
    counter = path.read_bytes()[6:8]
    sink.close()
    sink = HealthPageSink(path, DATA_ID)
    assert reader.read().status is PageStatus.REPEATED
    sink.write(row(), now())
    reading = reader.read()
    assert reading.status is PageStatus.OK
    assert reading.page.instance != instance
    assert (counter, path.read_bytes()[6:8]) == (b"\0\1", b"\0\2")  # also for a reader that knows E2E alone
    sink.close()
    reader.close()


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from handmade import report, row, vitals
from msgspec.structs import replace
from edge_monitor.sinks.health_page import HealthPageSink
sink = HealthPageSink(sys.argv[1], 7)
frame = 0
while True:
    frame += 1
    said = replace(report(frame, vital=vitals(latency_ns=frame, rate_hz=frame)), t_ns=time.monotonic_ns())
    sink.dropped_rows = sink.dropped_records = frame
    sink.write(row(frame), said)
    if frame == 1:
        print("ready", flush=True)
"""


def test_a_page_read_while_another_process_writes_is_of_one_piece(path):
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        assert writer.stdout.readline() == b"ready\n"
        reader = HealthPageReader(path, 7, LATE)
        frames = set()
        while len(frames) < 300:
            reading = reader.read()
            assert reading.status in {PageStatus.OK, PageStatus.REPEATED, PageStatus.TORN}
            if reading.page is not None:
                page = reading.page
                assert page.frame == page.latency_ns == page.rate_hz == page.dropped_rows
                assert page.frame == page.dropped_records
                frames.add(page.frame)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    reader.read()
    assert reader.read().status in {PageStatus.REPEATED, PageStatus.TORN}
    reader.close()


def test_two_monitors_never_share_a_page(sink, path):
    with pytest.raises(InputError, match="another monitor writes this health page"):
        HealthPageSink(path, DATA_ID)
    sink.close()
    HealthPageSink(path, DATA_ID).close()


def test_places_where_no_page_can_be(tmp_path):
    for place in (tmp_path / "missing" / "page", tmp_path):
        with pytest.raises(InputError, match="cannot hold a health page"):
            HealthPageSink(place, DATA_ID)
    short = tmp_path / "short"
    short.write_bytes(bytes(SIZE - 1))
    for place in (tmp_path / "missing", short):
        with pytest.raises(InputError, match="no health page to read"):
            HealthPageReader(place, DATA_ID, LATE)


def test_a_file_of_something_else_is_left_alone(path):
    path.write_bytes(bytes(range(256)) * 3)
    with pytest.raises(InputError, match="768 bytes of something else"):
        HealthPageSink(path, DATA_ID)
    assert path.read_bytes() == bytes(range(256)) * 3


def test_what_any_sink_lost_is_on_the_page(sink, reader):
    monitor = SimpleNamespace(feed=lambda _item: now())
    Watch(monitor, [sink, SimpleNamespace(dropped=2, failed=3, write=lambda *_: None)]).feed(row())
    assert reader.read().page.dropped_records == 5


def test_a_full_tmpfs_is_refused_at_the_start(path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left"):
        HealthPageSink(path, DATA_ID)


def test_write_never_raises(sink, reader):
    sink.write(row(), now(frame=1))
    sink.write(row(), now(frame=2**70))
    assert sink.failed == 1
    reading = reader.read()
    assert (reading.status, reading.page.frame) == (PageStatus.OK, 1)
    sink.close()
    sink.write(row(), now())
    sink.close()


PROGRAM = r"""
#include "health_page.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define OFFSET(field) printf("offset " #field " %zu\n", offsetof(struct em_health_page, field))
#define U(field) OFFSET(field); printf(#field " %" PRIu64 "\n", (uint64_t)page.field)
#define I(field) OFFSET(field); printf(#field " %" PRId64 "\n", (int64_t)page.field)
#define D(field) OFFSET(field); printf(#field " %.17g\n", page.field)

int main(int argc, char **argv) {
    struct em_health_page page;
    struct em_page_reader reader = {0, 0, 0};
    if (argc != 5) return 2;
    uint32_t data_id = (uint32_t)strtoul(argv[2], NULL, 10);
    int64_t now = strtoll(argv[3], NULL, 10), deadline = strtoll(argv[4], NULL, 10);
    int file = open(argv[1], O_RDONLY);
    const struct em_health_page *mapped =
        (const struct em_health_page *)mmap(NULL, sizeof page, PROT_READ, MAP_SHARED, file, 0);
    printf("status %d\n", (int)em_health_page_read(mapped, data_id, now, deadline, &reader, &page));
    U(format); U(state); U(instance); U(content_counter); I(frame); I(t_ns); U(flags);
    D(temporal_score); D(spatial_score); D(input_score); D(evidence_ratio); D(consistency); D(agreement);
    D(rate_hz); I(latency_ns); D(step_ns); U(dropped_rows); U(dropped_records);
    U(scanned_taps); U(scan_period);
    OFFSET(worst_flag); printf("worst_flag %.32s\n", page.worst_flag);
    printf("again %d\n", (int)em_health_page_read(mapped, data_id, now, deadline, &reader, &page));
    return 0;
}
"""
C_STATUS = ("OK", "REPEATED", "STALE", "TORN", "CORRUPT", "FOREIGN")


@pytest.fixture(scope="module", params=["cc", "c++"])
def c_reader(request, tmp_path_factory):
    compiler = shutil.which(request.param)
    if compiler is None:
        pytest.skip(f"no {request.param}")
    folder = tmp_path_factory.mktemp("c")
    source, program = folder / ("reader.c" if request.param == "cc" else "reader.cpp"), folder / "reader"
    source.write_text(PROGRAM)
    standard = "-std=gnu11" if request.param == "cc" else "-std=gnu++17"
    options = [standard, "-O2", "-Wall", "-Wextra", "-Werror", f"-I{HEADER_DIR}"]
    subprocess.run([compiler, *options, str(source), "-o", str(program)], check=True)

    def read(path, data_id=DATA_ID, now_ns=None, deadline_ns=LATE):
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        command = [str(program), str(path), str(data_id), str(now_ns), str(deadline_ns)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        answer = dict(
            line.rsplit(" ", 1) if line.startswith("offset") else line.split(" ", 1) for line in lines
        )
        return C_STATUS[int(answer["status"])], C_STATUS[int(answer["again"])], answer

    return read


def test_the_c_header_reads_the_same_page(c_reader, sink, path):
    sink.step_ns, sink.dropped_rows, sink.dropped_records = 61e3, 3, 2**40
    sink.write(row(), full_report())
    status, again, answer = c_reader(path)
    assert (status, again) == ("OK", "REPEATED")
    page = asdict(HealthPageReader(path, DATA_ID, LATE).read().page) | {"format": 2}
    offset = PAYLOAD
    for name, code in FIELDS:
        assert int(answer[f"offset {name}"]) == offset, name
        assert type(page[name])(answer[name] if code == "32s" else float(answer[name])) == page[name] or (
            int(answer[name]) == page[name]
        ), name
        offset += struct.calcsize("<" + code)
    assert offset == SIZE


def test_the_c_header_doubts_the_same_pages(c_reader, sink, path):
    assert c_reader(path)[0] == "FOREIGN"
    said = full_report()
    sink.write(row(), said)
    assert c_reader(path, data_id=1)[0] == "FOREIGN"
    assert c_reader(path, now_ns=said.t_ns + LATE)[0] == "OK"
    assert c_reader(path, now_ns=said.t_ns + LATE + 1)[0] == "STALE"
    assert c_reader(path, now_ns=said.t_ns - 1)[0] == "STALE"
    sound = path.read_bytes()
    for place, status in (
        (0, "TORN"),
        (5, "FOREIGN"),
        (6, "CORRUPT"),
        (12, "CORRUPT"),
        (SIZE - 1, "CORRUPT"),
    ):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert c_reader(path)[0] == status, place
