"""Settings of one installation: YAML to frozen values, checked as they are made."""

from __future__ import annotations

import ipaddress
import re
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from edge_monitor.errors import ConfigError

MAX_SEGMENT = 64
MAX_THREADS = 256


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ONNX model to serve, and how many threads it may use."""

    path: str
    threads: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise ValueError(f"threads is {self.threads}, must lie in 1 ... {MAX_THREADS}")


class FrameSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where frames come from and how pixels become model input.

    ``frames``: directory, ``.npy`` or ``.npz`` file, ``demo:SEED``, or ``demo-b:SEED`` for the second
    world of the demo road. Model input is ``(pixel * scale - mean) / std``, with one mean and std, or
    one per channel. ``limit`` ends the stream after so many frames, ``loop`` starts a file over at its
    end. ``realtime`` paces the frames at their rate; without it they come as fast as the model takes
    them.

    Raises
    ------
    ValueError
        A value cannot be used; the message names the key and the value.
    """

    frames: str
    frame_rate_hz: float = 30.0
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    limit: int | None = None
    loop: bool = False
    realtime: bool = True

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("frames is empty")
        if not 0 < self.frame_rate_hz < inf:
            raise ValueError(f"frame_rate_hz is {self.frame_rate_hz}, must be positive")
        if not 0 < abs(self.scale) < inf:
            raise ValueError(f"scale is {self.scale}, must be finite and not 0")
        if not self.mean or not all(-inf < value < inf for value in self.mean):
            raise ValueError(f"mean is {list(self.mean)}, must hold finite numbers")
        if not self.std or not all(0 < value < inf for value in self.std):
            raise ValueError(f"std is {list(self.std)}, must hold positive numbers")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, must be at least 1")


class CalibrationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a region map is made for.

    ``alarms_per_hour``: false-alarm budget of all evidence channels together. ``bands``:
    frequency scale, ``nyquist`` or ``hz`` (design D5).

    Raises
    ------
    ValueError
        A value cannot be used; the message names the key and the value.
    """

    alarms_per_hour: float = 1.0
    bands: str = "nyquist"

    def __post_init__(self) -> None:
        if not 0 < self.alarms_per_hour < inf:
            raise ValueError(f"alarms_per_hour is {self.alarms_per_hour}, must be positive")
        if self.bands not in {"nyquist", "hz"}:
            raise ValueError(f"bands is {self.bands!r}, must be nyquist or hz")


class MonitorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of this installation.

    ``deadline_ms``: what the model may take for one frame, a frame period when not given.
    ``silence_frames``: frame periods without a frame that count as silence. ``repeats_by_nature``:
    the source repeats frames, so a repeated input is no fault. ``light``: leave out what takes most time, the
    functional residual with the sudden shift, the tracts, the fault head and the cross-modal consistency.

    Raises
    ------
    ValueError
        A value cannot be used; the message names the key and the value.
    """

    deadline_ms: float | None = None
    silence_frames: int = 15
    repeats_by_nature: bool = False
    light: bool = False

    def __post_init__(self) -> None:
        if self.deadline_ms is not None and not 0 < self.deadline_ms < inf:
            raise ValueError(f"deadline_ms is {self.deadline_ms}, must be positive")
        if self.silence_frames < 2:  # jitter alone stays below two periods
            raise ValueError(f"silence_frames is {self.silence_frames}, must be at least 2")


class HealthPageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The memory-mapped page: its file, in a tmpfs, and the E2E data id its readers expect."""

    path: str
    data_id: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.data_id < 2**32:
            raise ValueError(f"data_id is {self.data_id}, must fit 32 bits")


class RecordingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The folder in which each run writes a recording of its own."""

    folder: str


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where telemetry goes, and as whom.

    ``ca_file`` switches TLS on; ``cert_file`` and ``key_file`` add the device's own certificate.
    The password is the first line of ``password_file`` and never part of the settings. Without TLS
    only a loopback broker is accepted, unless ``allow_plaintext`` says otherwise.

    Raises
    ------
    ConfigError
        A value cannot be used; the message names the key and the value.
    """

    host: str
    port: int = 1883
    fleet: str
    vehicle: str
    monitor: str
    keepalive_s: int = 30
    window_s: float = 5.0
    queue_messages: int = 2000
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        for name in ("fleet", "vehicle", "monitor"):
            check_topic_segment(f"sinks.mqtt.{name}", getattr(self, name))
        if not self.host or not self.host.isprintable() or " " in self.host:
            raise ConfigError("sinks.mqtt.host", f"{self.host!r} is no host name")
        if not 1 <= self.port <= 65535:
            raise ConfigError("sinks.mqtt.port", f"{self.port} is outside 1 ... 65535")
        if not 5 <= self.keepalive_s <= 65535:
            raise ConfigError("sinks.mqtt.keepalive_s", f"{self.keepalive_s} is outside 5 ... 65535")
        if not 0.1 <= self.window_s <= 60:
            raise ConfigError("sinks.mqtt.window_s", f"{self.window_s} is outside 0.1 ... 60")
        if self.queue_messages < 1:
            raise ConfigError("sinks.mqtt.queue_messages", f"{self.queue_messages} must be at least 1")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("sinks.mqtt.cert_file", "cert_file and key_file go together")
        if self.cert_file is not None and self.ca_file is None:
            raise ConfigError("sinks.mqtt.cert_file", "needs ca_file, which switches TLS on")
        if self.password_file is not None and self.username is None:
            raise ConfigError("sinks.mqtt.password_file", "needs a username")
        if self.ca_file is None and not self.allow_plaintext and not _is_loopback(self.host):
            raise ConfigError(
                "sinks.mqtt.host", f"{self.host!r} is not this machine: set ca_file, or allow_plaintext: true"
            )

    def require_files(self) -> None:
        """Refuse a certificate, key or password file that cannot be read.

        Raises
        ------
        ConfigError
            Names the key and the file.
        """
        for key in ("ca_file", "cert_file", "key_file", "password_file"):
            path = getattr(self, key)
            try:
                if path is not None:
                    Path(path).open("rb").close()
            except OSError as error:
                raise ConfigError(f"sinks.mqtt.{key}", f"{path}: {error.strerror}") from error


class SinkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where reports go; what is not given is off. ``journal`` is standard error."""

    journal: bool = True
    health_page: HealthPageSettings | None = None
    recording: RecordingSettings | None = None
    mqtt: MqttSettings | None = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `edge_monitor.service.Service` needs."""

    model: ModelSettings
    region_map: str
    source: FrameSettings
    monitor: MonitorSettings = MonitorSettings()
    sinks: SinkSettings = SinkSettings()


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def load_config(path: str | Path) -> Config:
    """Read and check a YAML file.

    Raises
    ------
    ConfigError
        The file cannot be read or is no YAML, a key is unknown or missing, a value cannot be used;
        one line that names the file, the key and the value.
    """
    try:
        # Not safe_load: of a key given twice it keeps the last and says nothing.
        data = yaml.load(Path(path).read_bytes(), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(path, error.strerror or str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(path, f"not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {type(data).__name__}, not keys with values"
        raise ConfigError(path, found)
    _check_keys(path, data, Config, "")
    try:
        return msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(path, _explain(str(error), data)) from error
    except ConfigError as error:
        raise ConfigError(path, str(error)) from error


def _check_keys(path: str | Path, data: object, kind: Any, where: str) -> None:  # noqa: ANN401 - any annotation
    """Refuse a key that ``kind`` does not have, and name the one that was probably meant."""
    structs = [t for t in (kind, *get_args(kind)) if isinstance(t, type) and issubclass(t, msgspec.Struct)]
    if not structs or not isinstance(data, dict):
        return
    kinds = {field.name: field.type for field in msgspec.structs.fields(structs[0])}
    for key, value in data.items():
        if key not in kinds:
            nearest = get_close_matches(str(key), kinds, n=1, cutoff=0.0)[0]
            raise ConfigError(path, f"{where}{key} is no known key; did you mean {where}{nearest}?")
        _check_keys(path, value, kinds[key], f"{where}{key}.")


def _explain(message: str, data: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    """Put the key first and add the value that msgspec leaves out."""
    problem, _, place = message.partition(" - at `$.")
    if not place:
        return message
    place = place.rstrip("`")
    value = data
    for key, index in re.findall(r"(\w+)|\[(\d+)\]", place):
        value = value[int(index)] if index else value[key]
    found = "" if isinstance(value, dict) else f", found {value!r}"
    return f"{place}: {problem}{found}"


def check_topic_segment(what: str, text: str) -> None:
    """Refuse what cannot be one level of an MQTT topic (MQTT 5.0, section 4.7).

    Raises
    ------
    ConfigError
        ``text`` is empty, longer than `MAX_SEGMENT`, or holds ``/``, ``+``, ``#`` or an unprintable
        character; ``what`` is the key that is named.
    """
    if not 1 <= len(text) <= MAX_SEGMENT:
        raise ConfigError(what, f"{text!r} must have 1 ... {MAX_SEGMENT} characters")
    if not text.isprintable() or any(character in "/+#" for character in text):
        raise ConfigError(what, f"{text!r} must be printable and without '/', '+', '#'")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
