"""uvicorn's HTTP protocol that overlooks an offer of another protocol, as Java's client makes with each request.

uvicorn parses no further after such an offer: the request's body would be lost, or taken for a request.
"""

from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OF_THE_OFFER: Final = frozenset({b"upgrade", b"connection", b"http2-settings"})


class PlainHttpProtocol(HttpToolsProtocol):
    """One connection, which stays HTTP/1.1."""

    # The head that is parsed is one that an offer was taken out of.
    _has_declined = False

    def data_received(self, data: bytes) -> None:
        """Bytes of a request. Whatever cannot be parsed goes to `send_400_response`."""
        self._unset_keepalive_if_required()
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as offer:
                    data = self._decline(data[offer.args[0] :])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.send_400_response("this is not a valid HTTP/1.1 request")

    def on_headers_complete(self) -> None:
        """The head has come; one with an offer is not served but parsed again without it."""
        if not self.parser.should_upgrade():
            self._has_declined = False
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request has come; after an offer the parser thinks so before the body."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _decline(self, rest: bytes) -> bytes:
        """Begin anew; returns the head without the offer, and what came behind it. Once is enough for a head."""
        method = self.parser.get_method()
        if self._has_declined or method == b"CONNECT":
            raise httptools.HttpParserError
        self._has_declined = True
        is_last = not self.parser.should_keep_alive()
        lines = [b"%s %s HTTP/1.1" % (method, self.url)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] not in _OF_THE_OFFER]
        lines += [b"connection: close"] if is_last else []
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", rest])
