"""Images by URL: data URLs always, other servers only where the operator allows them.

A server that fetches what strangers name can be sent against its own network. So an address is fetched only if its
host is on the operator's list, all its IP addresses are public, the connection goes to the very address that was
checked, and nothing is redirected.
"""

import base64
import binascii
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

CHUNK = 2**16
PORTS = {"http": 80, "https": 443}
# Addresses of the IPv6 internet that stand for IPv4 ones, private ones too.
TRANSLATED = [ipaddress.ip_network(network) for network in ("64:ff9b::/96", "2002::/16")]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in TRANSLATED)


class _CheckedConnection(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever the host's name would resolve to now; ends at a deadline.

    A socket's own time limit starts anew with every byte, and a server may send them one by one.
    """

    def __init__(self, host: str, port: int, address: str, context: ssl.SSLContext | None, deadline: float):
        super().__init__(host, port, timeout=max(deadline - time.monotonic(), 0.001))
        self.address, self.context, self.deadline = address, context, deadline
        self.watchdog: threading.Timer | None = None

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.context is not None:
            self.sock = self.context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self.watchdog = threading.Timer(max(self.deadline - time.monotonic(), 0), self._abort, [self.sock])
        self.watchdog.start()
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()

    def stop(self) -> None:
        """Close it for good."""
        if self.watchdog is not None:
            self.watchdog.cancel()
        self.close()

    @staticmethod
    def _abort(sock: socket.socket) -> None:
        """End whatever waits for the other side."""
        with contextlib.suppress(OSError):  # it is closed already
            sock.shutdown(socket.SHUT_RDWR)


class ImageSource:
    """Turns the URL of an image into its encoded bytes."""

    def __init__(
        self,
        allowed_hosts: frozenset[str] = frozenset(),
        max_bytes: int = 20 * 2**20,
        timeout: float = 10.0,
        is_allowed_address: Callable[[str], bool] = is_public,
    ):
        """Allow hosts, written `host` or `host:port`; none by default.

        Args:
            allowed_hosts: images are fetched from these alone.
            max_bytes: of an image.
            timeout: seconds for all of a fetch.
            is_allowed_address: which IP addresses a host may have.
        """
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self.max_bytes, self.timeout, self.is_allowed_address = max_bytes, timeout, is_allowed_address

    def read(self, url: str) -> bytes:
        """The image's encoded bytes.

        Raises:
            ValueError: the URL is not one of an image that may be read, or it cannot be.
        """
        if url.startswith("data:"):
            return self._decode(url)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"an image URL is not a URL: {error}") from error
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("an image URL must be a data: URL with base64, or http(s) where the server allows that")
        default = PORTS[parts.scheme]
        written = parts.hostname if port in (None, default) else f"{parts.hostname}:{port}"
        if written not in self.allowed_hosts:
            raise ValueError(f"images of {written} are not fetched: send the image as a data: URL")
        if parts.username is not None or parts.password is not None:
            raise ValueError("an image URL must not hold a user name or password")
        try:
            return self._fetch(parts, port or default)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"the image at {written} could not be fetched: {type(error).__name__}") from error

    def _decode(self, url: str) -> bytes:
        head, comma, data = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("a data: URL of an image must read data:image/...;base64,...")
        try:
            decoded = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"a data: URL holds no valid base64: {error}") from error
        if len(decoded) > self.max_bytes:
            raise ValueError(f"an image has {len(decoded)} bytes; at most {self.max_bytes} are allowed")
        return decoded

    def _fetch(self, parts: SplitResult, port: int) -> bytes:
        host, deadline = parts.hostname, time.monotonic() + self.timeout
        assert host is not None
        late = f"the image at {host} did not arrive within {self.timeout:g} s"
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        if not addresses or not all(map(self.is_allowed_address, addresses)):
            raise ValueError(f"images of {host} are not fetched: it has an address that is not public")
        context = ssl.create_default_context() if parts.scheme == "https" else None
        if time.monotonic() >= deadline:  # the name took so long to resolve
            raise ValueError(late)
        connection = _CheckedConnection(host, port, sorted(addresses)[0], context, deadline)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "image/*"})
            response = connection.getresponse()
            if 300 <= response.status < 400:
                raise ValueError(f"the image at {host} is elsewhere, and redirects are not followed")
            if response.status != 200:
                raise ValueError(f"{host} answered {response.status} instead of an image")
            received = bytearray()
            while chunk := response.read1(CHUNK):
                received += chunk
                if len(received) > self.max_bytes:
                    raise ValueError(f"the image at {host} has more than the {self.max_bytes} bytes allowed")
        except (OSError, http.client.HTTPException):
            if time.monotonic() < deadline:
                raise
        finally:
            connection.stop()
        if time.monotonic() >= deadline:
            raise ValueError(late)
        return bytes(received)
