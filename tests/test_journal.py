import io
import os

import pytest
from handmade import report, row, transition
from msgspec.structs import replace

from edge_monitor.sinks.journal import JournalSink
from edge_monitor.sinks.queued import QueuedSink


def lines(*transitions):
    stream = io.StringIO()
    JournalSink(stream).write(row(), report(transitions=transitions))
    return stream.getvalue().splitlines()


def test_one_line_per_transition_and_none_per_frame():
    assert lines() == []
    assert lines(transition(812, "REGION_ABNORMAL", ratio=1.4, surprise=12.3456789)) == [
        'warning REGION_ABNORMAL inactive->confirmed "cause 812" frame=812 ratio=1.4 surprise=12.3457'
    ]
    assert len(lines(transition(1), transition(2))) == 2


@pytest.mark.parametrize(
    ("after", "level"),
    [
        *[("FAIL", "error"), ("STALE", "error"), ("WARN", "warning"), ("confirmed", "warning")],
        *[("OK", "info"), ("healed", "info"), ("pending", "info"), ("inactive", "info")],
    ],
)
def test_level_is_that_of_the_new_state(after, level):
    (line,) = lines(replace(transition(), after=after))
    assert line.split()[0] == level


def test_a_hostile_cause_stays_on_one_line_in_its_quotes():
    hostile = 'tap "x"\n<0>error FAKE a->b\x1b[2J\r frame=1'
    (line,) = lines(replace(transition(), cause=hostile))
    assert line.startswith("warning NONFINITE inactive->confirmed \"tap 'x' ")
    assert line.count('"') == 2
    assert line.isprintable()


def test_no_cause_no_quotes():
    (line,) = lines(replace(transition(), cause=""))
    assert line == "warning NONFINITE inactive->confirmed frame=0"


def test_priority_prefix_only_where_the_journal_listens(tmp_path, monkeypatch):
    def written(path):
        with path.open("w") as stream:
            JournalSink(stream).write(row(), report(transitions=[transition()]))
        return path.read_text()

    journal, other = tmp_path / "journal", tmp_path / "other"
    journal.touch()
    status = journal.stat()
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert written(journal).startswith("<4>warning NONFINITE ")
    assert written(other).startswith("warning NONFINITE ")


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(28, os.strerror(28))


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    "stream", [FullDisk(), closed(), io.TextIOWrapper(io.BytesIO(), "ascii")], ids=["full", "closed", "ascii"]
)
def test_what_the_stream_refuses_is_counted_and_told(stream):
    sink = QueuedSink(JournalSink(stream))
    for _ in range(2):
        sink.write(row(), report(transitions=[replace(transition(), cause="θ")]))
    sink.close()
    assert sink.failed == 2
    assert sink.error


def test_lost_reports_are_said():
    stream = io.StringIO()
    JournalSink(stream).lost(3)
    assert stream.getvalue() == "warning JOURNAL reports_lost=3\n"
