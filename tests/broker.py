"""Real brokers for tests: mosquitto on a free loopback port, a listener, and a strict scripted one."""

import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from typing import NamedTuple

import paho.mqtt.client as paho

from edge_monitor.sinks.telemetry import decode

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def wait_for(condition, what, seconds=30.0):
    """Return the first true value of ``condition()``; fail naming ``what`` after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return value


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


class Broker:
    """A mosquitto process with its own configuration; ``lines`` are added to that."""

    def __init__(self, folder, *lines, allow_anonymous=True):
        assert MOSQUITTO, "mosquitto is not installed: apt-get install mosquitto"
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        # "user" only matters to root: mosquitto would leave it and lose sight of the folder.
        settings = [
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {str(allow_anonymous).lower()}",
            "user root",
            "persistence false",
        ]
        self._config.write_text("\n".join([*settings, *lines, ""]))
        self._process = None
        self.start()

    def start(self):
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], stdout=log, stderr=log)

        def up():
            assert self._process.poll() is None, self._log.read_text()
            return answers(self.port)

        wait_for(up, "mosquitto listens")

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def pause(self):
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        self._process.send_signal(signal.SIGCONT)


class Received(NamedTuple):
    topic: str
    retain: bool
    message: object
    properties: object


class Listener:
    """Subscribes to everything; ``received`` grows as messages arrive."""

    def __init__(self, port, **options):
        self.received = []
        subscribed = threading.Event()
        self._client = client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        if "username" in options:
            client.username_pw_set(options["username"], options["password"])
        client.on_connect = lambda *_: client.subscribe("em/#", qos=1)
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_message = lambda _client, _data, m: self.received.append(
            Received(m.topic, m.retain, decode(m.payload), m.properties)
        )
        client.connect("127.0.0.1", port)
        client.loop_start()
        assert subscribed.wait(30), "the listener's subscription was not answered"

    def of(self, stream):
        """Messages of one stream, in order of arrival."""
        return [r.message for r in list(self.received) if r.message.stream == stream]

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


class StrictBroker:
    """Speaks just enough MQTT 5 to grant ``receive_maximum`` and to acknowledge only when told."""

    def __init__(self, receive_maximum):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._maximum = receive_maximum
        self._peer = None

    def accept(self):
        self._peer, _ = self._server.accept()
        self._peer.settimeout(30)
        kind, _ = self._packet()
        assert kind == 0x10  # CONNECT
        properties = b"\x21" + struct.pack(">H", self._maximum)
        self._peer.sendall(b"\x20\x06\x00\x00\x03" + properties)  # CONNACK: success

    def publish(self):
        """Read one PUBLISH with QoS 1; return its packet identifier."""
        kind, body = self._packet()
        assert kind & 0xF6 == 0x32, hex(kind)
        (topic_length,) = struct.unpack_from(">H", body)
        return struct.unpack_from(">H", body, 2 + topic_length)[0]

    def acknowledge(self, mid):
        self._peer.sendall(b"\x40\x02" + struct.pack(">H", mid))

    def disconnect(self, reason):
        self._peer.sendall(bytes([0xE0, 1, reason]))

    def silent(self, seconds):
        """Whether nothing more arrives for a while."""
        self._peer.settimeout(seconds)
        try:
            self._peer.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self._peer.settimeout(30)
        return False

    def close(self):
        for sock in (self._peer, self._server):
            if sock is not None:
                sock.close()

    def _packet(self):
        kind = self._exactly(1)[0]
        length = shift = 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return kind, self._exactly(length)

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            piece = self._peer.recv(count - len(data))
            assert piece, "the client hung up"
            data += piece
        return data
