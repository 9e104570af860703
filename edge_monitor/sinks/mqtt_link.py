"""One MQTT 5 connection, from connect to loss.

paho-mqtt resends on its own after a reconnect, past every in-flight limit, and an exception in one
of its callbacks ends its network thread without a word. So a link never reconnects (a lost one is
thrown away together with its paho client), and it has no thread: callbacks run inside `turn`, and
what they raise comes out of `turn`.
"""

from __future__ import annotations

import time
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_monitor.config import MqttSettings
from edge_monitor.sinks.telemetry import Message

CONNECT_S = 15.0
"""Time for TCP, for TLS and for the broker's answer, each; 5 s is too short for TLS on small boards."""
MAX_IN_FLIGHT = 20
TURN_S = 0.1
"""Longest wait of one turn: the delay of a flag on an idle connection."""


class LinkLostError(Exception):
    """The connection is over; the text says why."""


class MqttLink:
    """One connection. Not safe to use from several threads.

    Parameters
    ----------
    settings : MqttSettings
        Broker and credentials; the password file is read here.
    will : tuple[str, bytes]
        Topic and payload that the broker publishes, retained, when the connection breaks.

    Attributes
    ----------
    accepted : bool
        The broker answered the connect with success.
    unacknowledged : dict[int, Message]
        Published, but not acknowledged yet, by packet identifier, oldest first.
    refused : list[tuple[Message, str]]
        Answered with an error, and its text. The owner takes them out.
    """

    def __init__(self, settings: MqttSettings, will: tuple[str, bytes]) -> None:
        self.accepted = False
        self.unacknowledged: dict[int, Message] = {}
        self.refused: list[tuple[Message, str]] = []
        self._settings = settings
        self._limit = MAX_IN_FLIGHT
        self._end: str | None = None
        self._deadline = 0.0
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id(settings), protocol=paho.MQTTv5
        )
        client.connect_timeout = CONNECT_S
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        client.will_set(*will, qos=1, retain=True)
        if settings.username is not None:
            password = None
            if settings.password_file is not None:
                # Bytes that are no UTF-8 are replaced: a decoding error would print a part of the secret.
                text = Path(settings.password_file).read_text(encoding="utf-8", errors="replace")
                password = text.partition("\n")[0].rstrip("\r")
            client.username_pw_set(settings.username, password)
        if settings.ca_file is not None:
            client.tls_set(settings.ca_file, settings.cert_file, settings.key_file)

    def open(self) -> None:
        """Connect; blocks up to `CONNECT_S` each for TCP and TLS, and for the name server.

        Raises
        ------
        OSError
            The broker cannot be reached, or TLS failed.
        """
        settings = self._settings
        self._client.connect(settings.host, settings.port, settings.keepalive_s, clean_start=True)
        self._deadline = time.monotonic() + CONNECT_S

    def turn(self) -> None:
        """Send, receive and keep alive, for `TURN_S` at most.

        Raises
        ------
        LinkLostError
            The connection is over.
        """
        code = self._client.loop(TURN_S)
        if self._end is not None:
            raise LinkLostError(self._end)
        if code is not paho.MQTT_ERR_SUCCESS:
            raise LinkLostError(paho.error_string(code).rstrip("."))
        if not self.accepted and time.monotonic() > self._deadline:
            raise LinkLostError(f"no answer within {CONNECT_S:.0f} s")

    @property
    def has_room(self) -> bool:
        """Whether the broker takes another message now."""
        return self.accepted and len(self.unacknowledged) < self._limit

    def publish(
        self, message: Message, topic: str, payload: bytes, retain: bool, expiry_s: int | None
    ) -> None:
        """Hand over one message with QoS 1; only while `has_room`."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        self.unacknowledged[info.mid] = message

    def leave(self) -> None:
        """Say goodbye, so that the broker discards the last will."""
        self._client.disconnect()

    def close(self) -> None:
        """Close the socket; the broker sees a broken connection unless `leave` came first."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        # The callbacks are bound to this object: without the cycle the client goes away at once.
        self._client.on_connect = self._client.on_publish = self._client.on_disconnect = None

    def _on_connect(
        self, _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, properties: object
    ) -> None:
        if reason.is_failure:
            self._end = str(reason)
            return
        self._limit = min(MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MAX_IN_FLIGHT))
        self.accepted = True

    def _on_publish(
        self, _client: paho.Client, _data: object, mid: int, reason: ReasonCode, _properties: object
    ) -> None:
        message = self.unacknowledged.pop(mid)
        if reason.is_failure:
            self.refused.append((message, str(reason)))

    def _on_disconnect(
        self,
        _client: paho.Client,
        _data: object,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: object,
    ) -> None:
        if flags.is_disconnect_packet_from_server and self._end is None:
            self._end = str(reason)


def client_id(settings: MqttSettings) -> str:
    """Return the fixed client id of a monitor; a second connection with it ends the first."""
    return f"em/{settings.fleet}/{settings.vehicle}/{settings.monitor}"
