"""The network of an ordinary user's containers: outbound and published ports, with root nowhere."""

from __future__ import annotations

import http.client
import http.server
import shutil
import socket
import threading

import pytest

from vm.conftest import _image
from vm.rootless import RootlessPodman, missing, ordinary_user, until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "all there")
needs_slirp = pytest.mark.skipif(
    shutil.which("slirp4netns") is None, reason="slirp4netns is not installed: apt-get install slirp4netns"
)
needs_passt = pytest.mark.skipif(
    shutil.which("passt") is None, reason="passt is not installed: apt-get install passt"
)


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the host answers")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    """ADDRESS:PORT of a web server on this machine, on an address that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: finds the address of the default route
        except OSError:
            pytest.skip("this machine has no route to anywhere")
        address = probe.getsockname()[0]
    with http.server.HTTPServer((address, 0), _Answer) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"{address}:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def podman(guest_image):
    passt = 'host_network = "passt"\nallow_annotations = ["publish"]\n'
    with ordinary_user(guest_image.directory, passt, tun=True) as user:
        podman = RootlessPodman(user)
        podman.image, file = _image(user.directory)
        file.chmod(0o644)
        podman("load", "--input", file)
        yield podman
        podman.any("rm", "--all", "--force", "--time", "0", timeout_s=120)


@needs_slirp
def test_a_container_behind_slirp4netns_reaches_a_server(podman, server):
    run = ("run", "--rm", "--network", "slirp4netns", podman.image)
    assert podman(*run, "wget", "-q", "-O", "-", f"http://{server}/").text == "the host answers"


@needs_slirp
def test_a_port_that_slirp4netns_publishes_leads_into_the_guest(podman):
    port = free_port()
    network = ("--network", "slirp4netns:port_handler=slirp4netns", "--publish", f"127.0.0.1:{port}:80")
    serve = "echo from the guest >/index.html; exec httpd -f -p 80 -h /"
    podman("run", "--detach", "--name", "web", *network, podman.image, "sh", "-c", serve)
    until(lambda: _page(port) == b"from the guest\n", "the web server")
    podman("rm", "--force", "--time", "0", "web")
    assert _page(port) == b""


@needs_slirp
@pytest.mark.parametrize("network", ["slirp4netns", "bridge"])
def test_a_port_that_podmans_own_handler_publishes_leads_into_the_guest(podman, network):
    if network == "bridge":
        podman("network", "create", "own")
        network = "own"
    try:
        port = free_port()
        serve = "echo from the guest >/index.html; exec httpd -f -p 80 -h /"
        words = ("--name", "web", "--network", network, "--publish", f"127.0.0.1:{port}:80", podman.image)
        podman("run", "--detach", *words, "sh", "-c", serve)
        until(lambda: _page(port) == b"from the guest\n", "the web server")
        podman("restart", "--time", "0", "web")
        until(lambda: _page(port) == b"from the guest\n", "the web server of the second run")
        podman("rm", "--force", "--time", "0", "web")
        assert _page(port) == b""
    finally:
        podman.any("rm", "--force", "--time", "0", "web")
        if network == "own":
            podman.any("network", "rm", "--force", "own")


@needs_passt
def test_the_hosts_network_becomes_one_behind_passt_where_the_settings_say_so(podman, server):
    run = ("run", "--rm", "--network", "host", podman.image)
    assert podman(*run, "wget", "-q", "-O", "-", f"http://{server}/").text == "the host answers"


@needs_passt
def test_behind_passt_the_hosts_loopback_is_out_of_reach(podman):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        run = ("run", "--rm", "--network", "host", podman.image, "sh", "-c")
        fetch = (
            f"wget -T 3 -q -O - http://10.0.2.2:{port}/; wget -T 3 -q -O - http://127.0.0.1:{port}/; echo end"
        )
        assert podman(*run, fetch).text == "end"
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


@needs_passt
def test_a_port_that_passt_publishes_leads_into_the_guest(podman):
    port = free_port()
    publish = ("--annotation", f"bufferzone.publish=127.0.0.1:{port}:80")
    serve = "echo from the guest >/index.html; exec httpd -f -p 80 -h /"
    podman("run", "--detach", "--name", "web", "--network", "host", *publish, podman.image, "sh", "-c", serve)
    until(lambda: _page(port) == b"from the guest\n", "the web server")
    podman("rm", "--force", "--time", "0", "web")
    assert _page(port) == b""


@needs_passt
def test_a_port_that_is_taken_fails_the_container_with_passts_words(podman):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        publish = ("--annotation", f"bufferzone.publish=127.0.0.1:{taken.getsockname()[1]}:80")
        done = podman.any("run", "--rm", "--network", "host", *publish, podman.image, "true")
    assert done.status != 0
    assert "passt ended with status 1" in done.complaint
    assert "Failed to bind" in done.complaint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _page(port: int) -> bytes:
    """The front page, empty when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/index.html")
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()
