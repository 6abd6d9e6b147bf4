"""Images by URL: data URLs always, other servers only where the operator allows them.

A server that fetches what strangers name can be sent against its own network. So an address is fetched only if its
host is on the operator's list, all its IP addresses are public, the connection goes to the very address that was
checked, and nothing is redirected.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, quote, urlsplit

from ..model.images import decode_base64

CHUNK = 2**16
MAX_ADDRESSES = 8  # of one name
TARGET_CHARACTERS = "/%:@!$&'()*+,;=?~[]"
PORTS = {"http": 80, "https": 443}
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all of IPv6 that is assigned to the public internet
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # its last 32 bits are an IPv4 address
# Of special purpose, though some versions of `ipaddress` call them global: 6to4 and its relays, documentation, AS112.
SPECIAL = [
    ipaddress.ip_network(network)
    for network in ("2002::/16", "3fff::/20", "2620:4f:8000::/48", "2001::/23", "192.88.99.0/24", "192.0.0.0/24")
]


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet; an IPv4 address inside an IPv6 one decides."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in GLOBAL_UNICAST:
            return False
    is_special = any(ip.version == network.version and ip in network for network in SPECIAL)
    return ip.is_global and not ip.is_multicast and not is_special


def encoded_target(path: str, query: str) -> str:
    """Return path and query of a URL as a request line holds them: what is not ASCII percent-encoded as UTF-8."""
    target = quote(path or "/", safe=TARGET_CHARACTERS)
    return f"{target}?{quote(query, safe=TARGET_CHARACTERS)}" if query else target


class _CheckedConnection(http.client.HTTPConnection):
    """A connection to one of the addresses that were checked, whatever the host's name would resolve to now.

    Ends at a deadline: a socket's own time limit starts anew with every byte, and a server may send them one by one.
    """

    def __init__(self, host: str, port: int, addresses: list[str], context: ssl.SSLContext | None, deadline: float):
        super().__init__(host, port, timeout=max(deadline - time.monotonic(), 0.001))
        self.addresses, self.context, self.deadline = addresses, context, deadline
        self.watchdog: threading.Timer | None = None

    def connect(self) -> None:
        self.sock = self._connected()
        if self.context is not None:
            self.sock = self.context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self.watchdog = threading.Timer(max(self.deadline - time.monotonic(), 0), self._abort, [self.sock])
        self.watchdog.start()
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()

    def _connected(self) -> socket.socket:
        """Return a socket connected to the first address that answers, each given its share of the time left.

        Raises:
            OSError: of the last address, if none answers.
        """
        for index, address in enumerate(self.addresses, 1):
            share = max(self.deadline - time.monotonic(), 0.001) / (len(self.addresses) - index + 1)
            try:
                sock = socket.create_connection((address, self.port), share)
            except OSError:
                if index == len(self.addresses):
                    raise
            else:
                sock.settimeout(self.timeout)
                return sock
        raise OSError(f"{self.host} has no address")

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


def check_image_host(host: str) -> None:
    """Check that a host is written as those of URLs are compared with it.

    Raises:
        ValueError: it is written otherwise, and no URL would match.
    """
    try:
        parts = urlsplit(f"//{host}")
        fits = parts.hostname is not None and parts.netloc == host and "@" not in host and (parts.port or 1) > 0
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"an image host is written HOST or HOST:PORT, without scheme and path, got {host!r}")


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
            max_bytes: maximum bytes of an image.
            timeout: seconds for all of a fetch.
            is_allowed_address: predicate of the IP addresses that a host may have.
        """
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self.max_bytes, self.timeout, self.is_allowed_address = max_bytes, timeout, is_allowed_address

    def read(self, url: str) -> bytes:
        """The image's encoded bytes.

        Raises:
            ValueError: the URL is not one of an image that may be read, or it cannot be.
        """
        if url[:5].lower() == "data:":
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
        if self.allowed_hosts.isdisjoint({written, f"{parts.hostname}:{port or default}"}):
            raise ValueError(f"images of {written} are not fetched: send the image as a data: URL")
        if parts.username is not None or parts.password is not None:
            raise ValueError("an image URL must not hold a user name or password")
        try:
            return self._fetch(parts, port or default)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"the image at {written} could not be fetched: {type(error).__name__}") from error

    def _decode(self, url: str) -> bytes:
        decoded = decode_base64(url, "an image")
        if len(decoded) > self.max_bytes:
            raise ValueError(f"an image has {len(decoded)} bytes; at most {self.max_bytes} are allowed")
        return decoded

    def _fetch(self, parts: SplitResult, port: int) -> bytes:
        host, deadline = parts.hostname, time.monotonic() + self.timeout
        assert host is not None
        timeout_message = f"the image at {host} did not arrive within {self.timeout:g} s"
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # no name of the DNS
            raise ValueError(f"images of {host} are not fetched: it is no name of a host") from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if not addresses or not all(map(self.is_allowed_address, addresses)):
            raise ValueError(f"images of {host} are not fetched: it has an address that is not public")
        context = ssl.create_default_context() if parts.scheme == "https" else None
        if time.monotonic() >= deadline:  # the name took so long to resolve
            raise ValueError(timeout_message)
        connection = _CheckedConnection(host, port, addresses[:MAX_ADDRESSES], context, deadline)
        try:
            connection.request("GET", encoded_target(parts.path, parts.query), headers={"Accept": "image/*"})
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
            raise ValueError(timeout_message)
        return bytes(received)
