"""Images by URL: what is fetched, and above all what is not."""

import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llava_uhd.serving.remote import ImageSource, is_public

# A key and a certificate for `localhost` that signs itself, good for nothing but these tests.
CERTIFICATE = Path(__file__).parent / "localhost.pem"


class Pages(BaseHTTPRequestHandler):
    """A server that counts what it is asked for."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/image")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * (2000 if self.path == "/large" else 10))

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def port():
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def source(port: int, **options) -> ImageSource:
    hosts = frozenset({f"localhost:{port}", f"127.0.0.1:{port}"})
    return ImageSource(hosts, **{"max_bytes": 1000, "timeout": 2.0, **options})


def test_an_allowed_host_is_asked_for_the_image(port):
    images = source(port, is_allowed_address=lambda address: True)
    assert images.read(f"http://127.0.0.1:{port}/image?a=1#b") == b"x" * 10
    assert Pages.asked[-1] == "/image?a=1"
    assert images.read(f"HTTP://LOCALHOST:{port}/image") == b"x" * 10
    for path, said in [("moved", "redirects"), ("missing", "404"), ("large", "more than the 1000 bytes")]:
        Pages.asked.clear()
        with pytest.raises(ValueError, match=said):
            images.read(f"http://127.0.0.1:{port}/{path}")
        assert Pages.asked == [f"/{path}"]
    for path, target in [
        ("a b", "a%20b"),
        ("größe.png?q=ä", "gr%C3%B6%C3%9Fe.png?q=%C3%A4"),
        ("a%20b?c=%41", "a%20b?c=%41"),
    ]:
        assert images.read(f"http://127.0.0.1:{port}/{path}") == b"x" * 10
        assert Pages.asked[-1] == f"/{target}"


@pytest.fixture
def secure_port():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_an_image_by_https(secure_port, monkeypatch):
    images = source(secure_port, is_allowed_address=lambda address: True)
    with pytest.raises(ValueError, match="could not be fetched: SSLCertVerificationError"):
        images.read(f"https://localhost:{secure_port}/image")
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert images.read(f"https://localhost:{secure_port}/image") == b"x" * 10
    with pytest.raises(ValueError, match="could not be fetched: SSLCertVerificationError"):
        images.read(f"https://127.0.0.1:{secure_port}/image")


def test_an_allowed_host_with_a_private_address_is_not_asked(port):
    Pages.asked.clear()
    for host in ("localhost", "127.0.0.1"):
        with pytest.raises(ValueError, match="not public"):
            source(port).read(f"http://{host}:{port}/image")
    assert Pages.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "http://localhost/a.png",
        "http://127.0.0.1:{port}@example.org/a.png",
        "http://example.org#@127.0.0.1:{port}/a.png",
        "ftp://127.0.0.1:{port}/a.png",
        "file:///etc/passwd",
        "//127.0.0.1:{port}/a.png",
        "http:///a.png",
        "http://127.0.0.1:{port}0/a.png",
        "http://[::1",
        "http://127.0.0.1:no/a.png",
        "",
    ],
)
def test_other_urls_are_refused(port, url):
    Pages.asked.clear()
    with pytest.raises(ValueError):
        source(port, is_allowed_address=lambda address: True).read(url.format(port=port))
    with pytest.raises(ValueError, match="user name"):
        source(port, is_allowed_address=lambda address: True).read(f"http://a:b@127.0.0.1:{port}/a.png")
    assert Pages.asked == []


def test_nothing_is_fetched_by_default(port):
    with pytest.raises(ValueError, match="not fetched"):
        ImageSource().read(f"http://127.0.0.1:{port}/image")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_does_not_answer(scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        number = silent.getsockname()[1]
        images = ImageSource(frozenset({f"127.0.0.1:{number}"}), timeout=0.3, is_allowed_address=lambda address: True)
        with pytest.raises(ValueError, match="did not arrive within 0.3 s"):
            images.read(f"{scheme}://127.0.0.1:{number}/image")


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_sends_byte_by_byte(head):
    """Send slowly in headers (the first case) and in the body; each byte comes well within a socket's time limit."""

    def trickle(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(head)
            try:
                for byte in b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 100:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.1)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=trickle, args=(server,))
        thread.start()
        name = f"127.0.0.1:{server.getsockname()[1]}"
        images = ImageSource(frozenset({name}), timeout=0.5, is_allowed_address=lambda address: True)
        started = time.monotonic()
        with pytest.raises(ValueError, match="did not arrive within 0.5 s"):
            images.read(f"http://{name}/image")
        assert time.monotonic() - started < 5
        thread.join()


@pytest.mark.parametrize(
    "address, public",
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a01:203", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::808:808", False),
        ("fec0::1", False),
        ("::127.0.0.1", False),
        ("::8.8.8.8", False),
        ("::ffff:0:127.0.0.1", False),
        ("::ffff:0:8.8.8.8", False),
        ("::ffff:8.8.8.8", True),
        ("5f00::1", False),
        ("4000::1", False),
        ("2001:db8::1", False),
        ("2001::1", False),
        ("3fff::1", False),
        ("ff0e::1", False),
        ("fe80::1%1", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) == public


def test_all_addresses_of_a_name_are_tried_and_checked(port, monkeypatch):
    found = ["127.0.0.2", "::1", "127.0.0.1"]  # nothing listens on the first two

    resolve = socket.getaddrinfo

    def getaddrinfo(host, number, *args, **kwargs):
        if host != "many.example":
            return resolve(host, number, *args, **kwargs)
        return [(None, None, None, "", (address, number)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    images = ImageSource(frozenset({f"many.example:{port}"}), timeout=5, is_allowed_address=lambda address: True)
    assert images.read(f"http://many.example:{port}/image") == b"x" * 10
    checked = ImageSource(frozenset({f"many.example:{port}"}), is_allowed_address=lambda address: address != "::1")
    with pytest.raises(ValueError, match="not public"):
        checked.read(f"http://many.example:{port}/image")
    del found[-1]
    with pytest.raises(ValueError, match="could not be fetched: "):
        images.read(f"http://many.example:{port}/image")


def test_data_urls():
    images = ImageSource(max_bytes=5)
    assert images.read("data:image/png;base64,aGVsbG8=") == b"hello"
    assert images.read("data:;base64,") == b""
    assert images.read("DATA:image/png;BASE64,aGVs\nbG8=\r\n") == b"hello"
    for url, said in [
        ("data:image/png;base64,aGVsbG8h", "6 bytes; at most 5"),
        ("data:image/png;base64,?", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
        ("data:image/png,abc", "base64"),
        ("data:", "base64"),
    ]:
        with pytest.raises(ValueError, match=said):
            images.read(url)
