"""The server's end of a Wire: repairs of what paramiko does to a client, and lets a client do."""

from __future__ import annotations

import select
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]
from paramiko.auth_handler import AuthHandler  # type: ignore[import-untyped,unused-ignore]
from paramiko.common import (  # type: ignore[import-untyped,unused-ignore]
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_REQUEST,
    cMSG_USERAUTH_BANNER,
)

from cluster.wire import Wire

HEAR_MS = 10
"""Milliseconds to wait for the client's list of algorithms before sending ours."""

# Its stubs describe only what is public. We build on more, so to the type checker these are Any.
_AuthHandler: Any = AuthHandler
_Channel: Any = paramiko.Channel


class UnusableKey:
    """Stands for an offered key of a type that we do not take: it is refused like any other."""


class _PatientAuthHandler(_AuthHandler):  # type: ignore[misc]
    """paramiko hangs up on a client that offers a key it cannot read (a security key's, say); its next may fit."""

    def _generate_key_from_request(self, algorithm: str, keyblob: bytes) -> Any:
        try:
            key = super()._generate_key_from_request(algorithm, keyblob)
        except Exception:
            key = None
        return key or UnusableKey()


def _on_request(channel: Any, message: Any) -> None:
    """A command must not answer before the client knows that it was granted."""
    _Channel._handle_request(channel, message)
    channel.get_transport().server_object.replied(channel)


def _on_data(channel: Any, message: Any) -> None:
    """paramiko takes what a client sends beyond its window, and would keep it in memory."""
    _Channel._feed(channel, message)
    if len(channel.in_buffer) > channel.in_window_size:
        raise paramiko.SSHException("sent more than its window")


def _on_extended_data(channel: Any, message: Any) -> None:
    """Clients have no stderr to send; what claims to be it is thrown away."""


class ServerWire(Wire):
    """A Wire whose far side is a client. Its `server_object` is told what paramiko tells nobody:

    logged_in()         once a client has proven its key
    opened(channel)     before anything is asked of a new channel
    replied(channel)    once the client knows what became of a request
    ended(error)        as the last thing that the connection's thread does
    """

    _heard = False
    auth_handler: Any

    _channel_handler_table = {  # noqa: RUF012 – paramiko's own is a class's, too
        **Wire._channel_handler_table,
        MSG_CHANNEL_REQUEST: _on_request,
        MSG_CHANNEL_DATA: _on_data,
        MSG_CHANNEL_EXTENDED_DATA: _on_extended_data,
    }

    def tell_stranger(self, line: str) -> None:
        """One line for the person, before they have proven a key: the protocol's banner."""
        message = paramiko.Message()
        message.add_byte(cMSG_USERAUTH_BANNER)
        message.add_string(line + "\r\n")
        message.add_string("")
        self._send_message(message)

    def _auth_trigger(self) -> None:
        super()._auth_trigger()
        self.server_object.logged_in()

    def _queue_incoming_channel(self, channel: Any) -> None:
        self.server_object.opened(channel)  # paramiko's queue is for accept(), and grows without it

    def _send_kex_init(self) -> None:
        """Hear which ciphers the client has before naming ours, where that costs no round trip.

        Of the ciphers that both sides have, SSH takes the first of the client's list. Stock OpenSSH lists AES-GCM
        after AES-CTR, which is half as fast here; so CTR is named only where it must be.
        """
        if not self._heard and self._client_speaks():
            return  # _negotiate_keys sends it
        super()._send_kex_init()

    def _client_speaks(self) -> bool:
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return self.packetizer.stream.read_ahead or bool(poll.poll(HEAR_MS))

    def _negotiate_keys(self, m: Any) -> None:
        if not self._heard:
            self._heard = True
            lists = self._really_parse_kex_init(m)
            m.rewind()
            offered = {*lists["client_encrypt_algo_list"]} & {*lists["server_encrypt_algo_list"]}
            fast = tuple(name for name in self._preferred_ciphers if "gcm" in name and name in offered)
            if fast and self.local_kex_init is None:
                self._preferred_ciphers = fast
        super()._negotiate_keys(m)

    def _parse_newkeys(self, m: Any) -> None:
        if self.auth_handler is None:
            self.auth_handler = _PatientAuthHandler(self)
        super()._parse_newkeys(m)

    def run(self) -> None:
        try:
            super().run()
        finally:
            self.server_object.ended(self.saved_exception)
