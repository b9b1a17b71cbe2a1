"""Serves the app in the local network, to try it."""

import errno
import io
import socket
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from utils.errors import ConfigError

OUTSIDE = ("192.0.2.1", 9)  # an address for documentation, RFC 5737; nothing is sent to it


class Handler(SimpleHTTPRequestHandler):
    """Sends files that browsers ask for anew each time, and logs no requests."""

    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
    }  # Windows may have another

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


def open_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Returns a server of `folder` for this machine and its network; port 0 takes a free one.

    Raises:
        ConfigError: The port is taken, or not allowed.
    """
    try:
        return ThreadingHTTPServer(("", port), partial(Handler, directory=str(folder)))
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ConfigError(f"--port {port} {reason}; take another one, or 0 for a free one") from error


def network_address() -> str | None:
    """Returns this machine's address in its network; None without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(OUTSIDE)
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def qr_code(text: str) -> str:
    """Returns a QR code of `text` for a terminal."""
    import segno

    drawn = io.StringIO()
    segno.make_qr(text).terminal(drawn, compact=True)
    return drawn.getvalue().rstrip("\n")
