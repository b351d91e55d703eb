"""The server: on this machine's own address only, its port, and the command that starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from chiasm.dashboards import serve
from chiasm.dashboards.settings import VARIABLE, Settings, told
from chiasm.scenes.errors import UserError


def test_settings_are_those_of_the_command(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert told() == Settings("organism", None, None, "runs", None)
    monkeypatch.setenv(VARIABLE, json.dumps({"model": "m", "runs": "r", "port": 8600}))
    assert told() == Settings("m", None, None, "r", 8600)


def test_only_this_machine_is_served():
    options = serve.options(8600)
    assert options["server.address"] == "127.0.0.1" and options["server.port"] == "8600"
    assert options["browser.gatherUsageStats"] == "false" and options["server.fileWatcherType"] == "none"
    assert "server.enableCORS" not in options and "server.enableXsrfProtection" not in options  # both are on by default


def test_a_port_in_use_is_one_line_or_the_next_one(monkeypatch):
    with socket.create_server((serve.ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used: name another one with --port"):
            serve.free_port(port)
        monkeypatch.setattr(serve, "PORTS", range(port, port + 1))
        with pytest.raises(UserError, match="are all in use"):
            serve.free_port(None)
        with socket.create_server((serve.ADDRESS, 0)) as other:
            free = other.getsockname()[1]
        monkeypatch.setattr(serve, "PORTS", [port, free])
        assert serve.free_port(None) == free


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`chiasm dashboard` as a user starts it: (its address, seconds until it answers, the process)."""
    folder = tmp_path_factory.mktemp("served")
    with socket.create_server((serve.ADDRESS, 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    command = [sys.executable, "-m", "chiasm.experiments.cli", "dashboard", "--port", str(port), "--runs", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        while time.monotonic() - began < 60:
            try:
                urlopen(f"{address}/_stcore/health", timeout=1).read()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield address, folder / "log", process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)


def test_the_command_prints_its_address_and_serves(server):
    address, log, _ = server
    assert address in log.read_text()
    assert b"<title>" in urlopen(f"{address}/runs", timeout=5).read()


@pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="sockets of a process are read from /proc, which Linux has"
)
def test_it_listens_on_the_loopback_address_alone(server):
    address, _, process = server
    port = int(address.rpartition(":")[2])
    own = {os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()}
    listening = []
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{process.pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                listening.append((table, fields[1]))
    assert listening == [("tcp", f"0100007F:{port:04X}")]


def test_a_script_of_another_site_cannot_talk_to_it(server):
    """A page of another site may open a socket to this machine; the server asks where it comes from."""
    address, _, _ = server
    host, port = "127.0.0.1", int(address.rpartition(":")[2])
    answers = {}
    for origin in ("http://evil.example", address):
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(
                f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: {origin}\r\n\r\n".encode()
            )
            answers[origin] = int(connection.recv(64).split()[1])
    assert answers == {"http://evil.example": 403, address: 101}


def test_a_wrong_option_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "chiasm.experiments.cli", "dashboard", "--port", "99999999"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--port" in done.stderr
