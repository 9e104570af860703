"""EM/1 on the wire: envelopes, topics, numbers that JSON does not know."""

import json
from datetime import timedelta

import msgspec
import numpy as np
import pytest
from handmade import flag, probe_event, report, row, transition
from hypothesis import given
from hypothesis import strategies as st

from edge_monitor.config import MAX_SEGMENT, check_topic_segment
from edge_monitor.errors import ConfigError, InputError
from edge_monitor.flag_table import FLAGS
from edge_monitor.sinks.metric_window import WindowBuilder
from edge_monitor.sinks.telemetry import Author, Dropped, Message, decode, encode


@pytest.fixture
def author():
    return Author("fleet", "van 7", "front", {"edge_monitor": "1"}, {"model": "ab"})


def every_kind(author):
    builder = WindowBuilder()
    builder.update(row(), report())
    return {
        "status": author.status("online"),
        "flag": author.flag(transition(3, score=1.5)),
        "flagstate": author.flagstate(flag("DARK", limit=2.0)),
        "start": author.start(),
        "probe": author.probe(probe_event()),
        "dropped": author.dropped(Dropped("flag", 3, 9, "queue full")),
        "metric": author.metric(builder.build(skipped=0)),
    }


def test_every_message_survives_the_wire(author):
    for kind, message in every_kind(author).items():
        payload = encode(message)
        assert json.loads(payload)["type"] == kind
        assert decode(payload) == message


def test_every_message_carries_the_envelope(author):
    keys = {"v", "id", "dev", "mon", "boot", "stream", "seq", "t_wall", "t_mono_ns"}
    keys |= {"clock_synced", "hist", "prio", "type", "data"}
    for message in every_kind(author).values():
        wire = json.loads(encode(message))
        assert set(wire) == keys
        assert (wire["v"], wire["dev"], wire["mon"], wire["boot"]) == (1, "van 7", "front", author.boot)
        assert wire["t_wall"].endswith("Z")


def test_topics_and_priorities(author):
    root = "em/v1/fleet/van 7/front"
    assert {kind: (author.topic(m), m.prio) for kind, m in every_kind(author).items()} == {
        "status": (f"{root}/status", 0),
        "flag": (f"{root}/flag", 0),
        "flagstate": (f"{root}/flagstate/DARK", 0),
        "start": (f"{root}/event", 1),
        "probe": (f"{root}/event", 1),
        "dropped": (f"{root}/event", 1),
        "metric": (f"{root}/metric", 2),
    }


def test_a_declared_gap_says_from_and_to(author):
    data = json.loads(encode(author.dropped(Dropped("flag", 3, 9, "queue full"))))["data"]
    assert data == {"stream": "flag", "from": 3, "to": 9, "reason": "queue full"}


def test_only_the_birth_says_what_runs_here(author):
    assert author.status("online").data.hashes == {"model": "ab"}
    for state in ("offline", "lost"):
        assert author.status(state).data.versions == {}
        assert author.status(state).data.state == state


def test_every_boot_and_every_message_has_its_own_name(author):
    other = Author("fleet", "van 7", "front", {}, {})
    assert other.boot != author.boot
    assert author.flag(transition()).id != author.flag(transition()).id
    assert author.flag(transition()).t_wall.utcoffset() == timedelta(0)


@given(st.dictionaries(st.text(max_size=5), st.floats(), max_size=5))
def test_numbers_arrive_exactly_and_non_finite_as_null(values):
    author = Author("f", "v", "m", {}, {})
    numpy_values = {key: np.float64(value) for key, value in values.items()}
    for given_values in (values, numpy_values):
        message = author.flag(msgspec.structs.replace(transition(), values=given_values))
        arrived = decode(encode(message)).data.values
        assert arrived == {key: value if np.isfinite(value) else None for key, value in values.items()}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'{"type":"flag"}',
        b'{"type":"other"}',
        b'{"type":"status","v":2}',
    ],
)
def test_what_is_no_message_is_refused(payload):
    with pytest.raises(InputError, match="EM/1 message"):
        decode(payload)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(payload):
    with pytest.raises(InputError):
        decode(payload)


def test_a_newer_sender_stays_readable(author):
    wire = json.loads(encode(author.flag(transition())))
    wire["invented_later"] = wire["data"]["invented_later"] = 1
    assert decode(json.dumps(wire).encode()).data.code == "NONFINITE"


def test_a_schema_can_be_made_of_the_types():
    assert "MetricMessage" in msgspec.json.schema(Message)["$defs"]


@pytest.mark.parametrize("text", ["", "a/b", "+", "#", "a#", "a\nb", "a\x00", "\x7f", "\ud800", "a" * 65])
def test_a_bad_topic_level_is_refused_by_name(text):
    for place in range(3):
        levels = ["f", "v", "m"]
        levels[place] = text
        with pytest.raises(ConfigError, match=("fleet", "vehicle", "monitor")[place]):
            Author(*levels, {}, {})


@given(st.text(max_size=MAX_SEGMENT))
def test_an_accepted_level_is_one_level_of_a_topic(text):
    try:
        check_topic_segment("x", text)
    except ConfigError:
        assert not text or not text.isprintable() or set(text) & set("/+#")
        return
    topic = Author(text, "v", "m", {}, {}).topic(Author(text, "v", "m", {}, {}).status("lost"))
    assert topic.split("/") == ["em", "v1", text, "v", "m", "status"]
    assert topic.encode().decode() == topic


def test_every_flag_code_is_a_topic_level():
    for flag_row in FLAGS:
        check_topic_segment("flag code", flag_row.code)
