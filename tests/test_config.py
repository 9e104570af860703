"""Configuration: what is accepted, and that every refusal names file, key and value."""

from __future__ import annotations

import copy
import math

import pytest
import yaml

from edge_monitor.config import (
    Config,
    FrameSettings,
    HealthPageSettings,
    ModelSettings,
    MonitorSettings,
    RecordingSettings,
    check_topic_segment,
    load_config,
)
from edge_monitor.errors import ConfigError

EXAMPLE = {
    "model": {"path": "/etc/edge-monitor/model.onnx", "threads": 2},
    "region_map": "/etc/edge-monitor/map.npz",
    "source": {
        "frames": "demo:1",
        "frame_rate_hz": 30,
        "scale": 0.5,
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
        "limit": 10,
        "loop": True,
        "realtime": False,
    },
    "monitor": {"deadline_ms": 20, "silence_frames": 10, "repeats_by_nature": True, "light": True},
    "sinks": {
        "journal": False,
        "health_page": {"path": "/run/edge-monitor/health", "data_id": 7},
        "recording": {"folder": "/var/lib/edge-monitor"},
        "mqtt": {
            "host": "broker.example",
            "port": 8883,
            "fleet": "f",
            "vehicle": "v",
            "monitor": "m",
            "keepalive_s": 60,
            "window_s": 2,
            "queue_messages": 100,
            "username": "v",
            "password_file": "/etc/edge-monitor/password",
            "ca_file": "/etc/edge-monitor/ca.pem",
            "cert_file": "/etc/edge-monitor/cert.pem",
            "key_file": "/etc/edge-monitor/key.pem",
            "allow_plaintext": False,
        },
    },
}
"""Every key there is: `test_every_key_arrives` compares it with the settings."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "car.yaml"


def places(tree, prefix=()):
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from places(value, (*prefix, key))


PLACES = list(places(EXAMPLE))


def changed(place, value):
    """Return the example with one value replaced; ... removes its key."""
    tree = copy.deepcopy(EXAMPLE)
    where = tree
    for key in place[:-1]:
        where = where[key]
    if value is ...:
        del where[place[-1]]
    else:
        where[place[-1]] = value
    return tree


def refusal(path, tree):
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_every_key_arrives(path):
    path.write_text(yaml.safe_dump(EXAMPLE))
    config = load_config(path)

    def plain(struct):
        values = {name: getattr(struct, name) for name in struct.__struct_fields__}
        return {k: plain(v) if hasattr(v, "__struct_fields__") else v for k, v in values.items()}

    expected = copy.deepcopy(EXAMPLE)
    for key in ("mean", "std"):
        expected["source"][key] = tuple(expected["source"][key])
    assert plain(config) == expected


def test_what_is_left_out_has_a_default(path):
    path.write_text("model: {path: m.onnx}\nregion_map: m.npz\nsource: {frames: 'demo:1'}\n")
    config = load_config(str(path))
    source = FrameSettings(frames="demo:1")
    assert config == Config(model=ModelSettings(path="m.onnx"), region_map="m.npz", source=source)
    assert (source.frame_rate_hz, source.scale, source.mean, source.std) == (30.0, 1.0, (0.0,), (1.0,))
    assert (source.limit, source.loop, source.realtime) == (None, False, True)
    assert config.monitor == MonitorSettings()
    assert (config.sinks.journal, config.sinks.health_page, config.sinks.mqtt) == (True, None, None)


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_a_typo_is_refused_and_the_right_key_named(path, place):
    *parents, key = place
    tree = changed(place, ...)
    where = tree
    for parent in parents:
        where = where[parent]
    typo = key[:-1] + "x" if len(key) > 4 else key + "x"
    where[typo] = 1
    wrong, right = ".".join([*parents, typo]), ".".join(place)
    assert refusal(path, tree) == f"{wrong} is no known key; did you mean {right}?"


@pytest.mark.parametrize("key", [1, None, True, "Model"])
def test_any_strange_key_is_refused(path, key):
    assert "is no known key; did you mean" in refusal(path, EXAMPLE | {key: 1})


@pytest.mark.parametrize(
    "place", [("model",), ("model", "path"), ("region_map",), ("source", "frames"), ("sinks", "mqtt", "host")]
)
def test_a_missing_key_is_named(path, place):
    message = refusal(path, changed(place, ...))
    assert f"missing required field `{place[-1]}`" in message
    assert ".".join(place[:-1]) in message


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("model",), "m.onnx", ["model: ", "found 'm.onnx'"]),
        (("model", "path"), 3, ["model.path: ", "found 3"]),
        (("model", "threads"), "two", ["model.threads: ", "found 'two'"]),
        (("model", "threads"), 1.5, ["model.threads: ", "found 1.5"]),
        (("model", "threads"), 0, ["model: ", "threads is 0"]),
        (("region_map",), None, ["region_map: ", "found None"]),
        (("source", "frames"), "", ["source: ", "frames is empty"]),
        (("source", "frame_rate_hz"), "30 Hz", ["source.frame_rate_hz: ", "found '30 Hz'"]),
        (("source", "frame_rate_hz"), 0, ["source: ", "frame_rate_hz is 0"]),
        (("source", "frame_rate_hz"), math.nan, ["source: ", "frame_rate_hz is nan"]),
        (("source", "frame_rate_hz"), math.inf, ["source: ", "frame_rate_hz is inf"]),
        (("source", "scale"), 0, ["source: ", "scale is 0"]),
        (("source", "scale"), math.nan, ["source: ", "scale is nan"]),
        (("source", "mean"), [0.1, "a"], ["source.mean[1]: ", "found 'a'"]),
        (("source", "mean"), 0.1, ["source.mean: ", "found 0.1"]),
        (("source", "mean"), [], ["source: ", "mean is []"]),
        (("source", "mean"), [math.inf], ["source: ", "mean is [inf]"]),
        (("source", "std"), [1, 0, 1], ["source: ", "std is [1.0, 0.0, 1.0]"]),
        (("source", "std"), [], ["source: ", "std is []"]),
        (("source", "limit"), 0, ["source: ", "limit is 0"]),
        (("source", "loop"), "often", ["source.loop: ", "found 'often'"]),
        (("monitor", "deadline_ms"), -1, ["monitor: ", "deadline_ms is -1"]),
        (("monitor", "silence_frames"), 1, ["monitor: ", "silence_frames is 1"]),
        (("sinks",), [1], ["sinks: ", "found [1]"]),
        (("sinks", "health_page"), "/run/page", ["sinks.health_page: ", "found '/run/page'"]),
        (("sinks", "health_page", "data_id"), 2**32, ["sinks.health_page: ", f"data_id is {2**32}"]),
        (("sinks", "health_page", "data_id"), -1, ["sinks.health_page: ", "data_id is -1"]),
        (("sinks", "mqtt", "port"), 70000, ["mqtt.port: ", "70000"]),
        (("sinks", "mqtt", "fleet"), "a/b", ["mqtt.fleet: ", "'a/b'"]),
    ],
)
def test_a_wrong_value_is_named_with_its_key(path, place, value, words):
    message = refusal(path, changed(place, value))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just words",
        "[1, 2]",
        "model: {path",
        "a: 2026-13-45",
        "a: !!python/object:os.system x",
        "\0",
        "%",
    ],
)
def test_what_is_no_yaml_mapping_is_refused(path, text):
    message = refusal(path, text)
    assert message.startswith(("not YAML (", "holds ", "is empty"))


def test_bytes_that_are_no_text_are_refused(path):
    path.write_bytes(b"\x80\x81")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(path)


@pytest.mark.parametrize("name", ["absent.yaml", ".", "car.yaml/below"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, path, name):
    path.write_text("")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("host", ["10.0.0.5", "broker.example", "0.0.0.0", "localhost.example"])
def test_plaintext_to_another_machine_is_refused(path, host):
    tree = changed(("sinks", "mqtt"), {"host": host, "fleet": "f", "vehicle": "v", "monitor": "m"})
    assert refusal(path, tree).startswith(f"sinks.mqtt.host: '{host}' is not this machine")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_plaintext_to_this_machine_is_fine(path, host):
    mqtt = {"host": host, "fleet": "f", "vehicle": "v", "monitor": "m"}
    path.write_text(yaml.safe_dump(changed(("sinks", "mqtt"), mqtt)))
    assert load_config(path).sinks.mqtt.host == host


@pytest.mark.parametrize("key", ["password", "passwd", "token"])
def test_a_secret_has_no_place_and_is_not_repeated(path, key):
    message = refusal(path, changed(("sinks", "mqtt", key), "s3cret"))
    assert f"sinks.mqtt.{key} is no known key" in message
    assert "s3cret" not in message


def test_settings_made_by_hand_are_checked_as_well():
    for make in (
        lambda: ModelSettings(path="m", threads=0),
        lambda: FrameSettings(frames="demo:1", limit=0),
        lambda: MonitorSettings(deadline_ms=math.nan),
        lambda: HealthPageSettings("p", data_id=2**32),
    ):
        with pytest.raises(ValueError, match=r"(threads|limit|deadline_ms|data_id) is"):
            make()
    assert RecordingSettings("folder").folder == "folder"


@pytest.mark.parametrize("text", ["a", "ä-1_2 3", "x" * 64])
def test_a_topic_segment(text):
    check_topic_segment("mqtt.fleet", text)


@pytest.mark.parametrize("text", ["", "x" * 65, "a/b", "+", "#", "a\nb", "a\0"])
def test_no_topic_segment(text):
    with pytest.raises(ConfigError, match=r"mqtt\.fleet: "):
        check_topic_segment("mqtt.fleet", text)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {path: m.onnx, threads: 1, threads: 2}\nregion_map: m.npz\nsource: {frames: x}\n")
    with pytest.raises(ConfigError, match="key threads is given twice"):
        load_config(path)


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("model: " + "[" * 5000, "not YAML")])
def test_empty_and_bottomless_files_are_refused(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)
