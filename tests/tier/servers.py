"""Real object stores, each on 127.0.0.1 at a free port, over a temporary folder.

What has to be downloaded or built is kept in a cache folder of the user (`$XDG_CACHE_HOME` or `~/.cache`), made once.
`python -m tests.tier.servers` makes all of it beforehand.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import hmac
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .google_xml import GoogleXml

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamcore-peers"
SHARED = Path(__file__).resolve().parents[3] / "shared"
REGION = "us-east-1"
_VERSITYGW = SHARED / "peers" / "s3" / "versitygw.sh"
_AZURITE = "azurite@3.35.0"
_FAKE_GCS = "github.com/fsouza/fake-gcs-server@v1.56.1"
_MINIO = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
_STARTS_S = 30.0
_INSTALLS_S = 1200.0
# What Azurite and every other emulator of Azure know; it is in their documentation.
_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class AbsentError(Exception):
    """A server cannot be had here, and why."""


@dataclasses.dataclass(frozen=True)
class Place:
    """What `streamcore.tier.address.connect` takes: an address without secrets, and the options to get there."""

    url: str
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that runs. endpoint: http://127.0.0.1:port; options: of `connect`, without the address of the server."""

    name: str
    scheme: str
    endpoint: str
    options: Mapping[str, Any]
    _make_bucket: Callable[[str, str], None]

    def make_bucket(self, bucket: str) -> None:
        """Makes a bucket or container; its name has 3 characters or more."""
        self._make_bucket(self.endpoint, bucket)

    def place(self, bucket: str, prefix: str = "", *, endpoint: str | None = None) -> Place:
        """A bucket of it, or a folder there. endpoint: another way to it, that of a proxy."""
        address = endpoint or self.endpoint
        if self.scheme == "az":
            address = f"{address}/{_AZURE_ACCOUNT}"
        url = f"{self.scheme}://{bucket}/{prefix}".rstrip("/")
        return Place(url, {**self.options, "endpoint": address})


# ---- the servers ----


@contextlib.contextmanager
def versitygw(folder: Path) -> Iterator[Server]:
    """An S3 server over a folder."""
    if not _VERSITYGW.exists():
        raise AbsentError(f"{_VERSITYGW.relative_to(SHARED.parent)} is not there")
    if shutil.which("go") is None and not (CACHE / "bin" / "versitygw").exists():
        raise AbsentError("versitygw is built with Go, which is not there")
    folder.mkdir(parents=True, exist_ok=True)
    with _installing():
        started = _run(["nice", str(_VERSITYGW), "start", str(folder), str(_free_port())], "versitygw")
    pid = int((folder / "pid").read_text())
    try:
        yield _s3("versitygw", started.split()[-1], "streamcore", "streamcore-secret")
    finally:
        _ended(pid)


@contextlib.contextmanager
def minio(folder: Path) -> Iterator[Server]:
    """Another S3 server over a folder. It is not built for a test, as that takes several minutes."""
    program = CACHE / "bin" / "minio"
    if not program.exists():
        raise AbsentError("minio is not there; python -m tests.tier.servers builds it")
    port = _free_port()
    environment = {"MINIO_ROOT_USER": "streamcore", "MINIO_ROOT_PASSWORD": "streamcore-secret", "MINIO_BROWSER": "off"}
    command = [str(program), "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder / "data")]
    with _started(command, port, folder, environment) as endpoint:
        yield _s3("minio", endpoint, "streamcore", "streamcore-secret")


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Server]:
    """An Azure Blob Storage server over a folder."""
    port = _free_port()
    command = ["node", str(_azurite_program()), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    command += ["--location", str(folder), "--disableTelemetry", "--skipApiVersionCheck"]
    options = {"account_name": _AZURE_ACCOUNT, "account_key": _AZURE_KEY, "allow_http": True}
    with _started(command, port, folder, {}) as endpoint:
        yield Server("azurite", "az", endpoint, options, _make_azure_container)


@contextlib.contextmanager
def fake_gcs(folder: Path) -> Iterator[Server]:
    """A Google Cloud Storage server that keeps its objects in memory."""
    port = _free_port()
    command = [str(_fake_gcs_program()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-log-level", "warn", "-public-host", "127.0.0.1"]
    options = {"bearer_token": "of-nobody", "allow_http": True}
    with _started(command, port, folder, {}) as endpoint, GoogleXml(endpoint) as front:
        yield Server("fake-gcs", "gs", front.endpoint, options, lambda _, bucket: _make_google_bucket(endpoint, bucket))


SERVERS = {"versitygw": versitygw, "minio": minio, "azurite": azurite, "fake-gcs": fake_gcs}


# ---- what they need ----


def _azurite_program() -> Path:
    program = CACHE / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    _installed(program, ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(CACHE / "azurite"), _AZURITE])
    return program


def _fake_gcs_program() -> Path:
    program = CACHE / "bin" / "fake-gcs-server"
    _installed(program, ["go", "install", _FAKE_GCS])
    return program


def _minio_program() -> Path:
    program = CACHE / "bin" / "minio"
    _installed(program, ["go", "install", _MINIO])
    return program


def _installed(program: Path, command: list[str]) -> None:
    with _installing():
        if program.exists():
            return
        if shutil.which(command[0]) is None:
            raise AbsentError(f"{program.name} comes with {command[0]}, which is not there")
        _run(["nice", *command], program.name)
    if not program.exists():
        raise AbsentError(f"{' '.join(command)} did not make {program.name}")


@contextlib.contextmanager
def _installing() -> Iterator[None]:
    """Nothing is installed twice by processes that come at once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "installing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], name: str) -> str:
    environment = {**os.environ, "GOBIN": str(CACHE / "bin")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_INSTALLS_S)
    except subprocess.TimeoutExpired:
        raise AbsentError(f"{name} was not ready in {_INSTALLS_S:.0f} s") from None
    if done.returncode != 0:
        raise AbsentError(f"{name} cannot be had: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


# ---- processes ----


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _started(command: list[str], port: int, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    try:
        ends = time.monotonic() + _STARTS_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > ends:
                raise AbsentError(f"{command[0]} does not answer: {log.read_text()[-400:]}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _ended(pid: int) -> None:
    """Ends a process that is nobody's child here."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        ends = time.monotonic() + 10
        while time.monotonic() < ends:
            os.kill(pid, 0)
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)


# ---- buckets ----


def _request(
    endpoint: str, method: str, target: str, headers: Callable[[], Mapping[str, str]], body: bytes = b""
) -> None:
    """Asks until the server says yes: one that has just begun to listen may say 503."""
    ends = time.monotonic() + _STARTS_S
    while True:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(endpoint).netloc, timeout=30)
        try:
            connection.request(method, target, body, dict(headers()))
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status in (200, 201):
            return
        if answer.status != 503 or time.monotonic() > ends:
            raise AbsentError(f"{method} {target}: {answer.status} {said[:300]!r}")
        time.sleep(0.1)


def _s3(name: str, endpoint: str, key: str, secret: str) -> Server:
    def make_bucket(at: str, bucket: str) -> None:
        _request(at, "PUT", f"/{bucket}", lambda: signed_s3(at, "PUT", f"/{bucket}", key, secret))

    options = {"access_key_id": key, "secret_access_key": secret, "region": REGION, "allow_http": True}
    return Server(name, "s3", endpoint, options, make_bucket)


def signed_s3(endpoint: str, method: str, path: str, key: str, secret: str) -> dict[str, str]:
    """Headers of an S3 request without query and body, by AWS Signature Version 4."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    headers = {"host": urllib.parse.urlsplit(endpoint).netloc, "x-amz-content-sha256": empty, "x-amz-date": now}
    names = ";".join(headers)
    listed = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = hashlib.sha256(f"{method}\n{path}\n\n{listed}\n{names}\n{empty}".encode()).hexdigest()
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    signing = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{canonical}"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, Signature={signing.hex()}"
    )
    return headers


def _make_google_bucket(endpoint: str, bucket: str) -> None:
    body = json.dumps({"name": bucket}).encode()
    headers = {"content-type": "application/json"}
    _request(endpoint, "POST", "/storage/v1/b?project=streamcore", lambda: headers, body)


def _make_azure_container(endpoint: str, container: str) -> None:
    """Makes a container, signed with the account's key (the scheme is "Shared Key" of 2015-02-21 and later)."""
    now = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    listed = f"x-ms-date:{now}\nx-ms-version:2021-08-06\n"
    path = f"/{_AZURE_ACCOUNT}/{container}"
    # The account comes twice: as the owner, and because the emulator has it in its path.
    text = f"PUT{chr(10) * 12}{listed}/{_AZURE_ACCOUNT}{path}\nrestype:container"
    signature = hmac.new(base64.b64decode(_AZURE_KEY), text.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": now,
        "x-ms-version": "2021-08-06",
        "content-length": "0",
        "authorization": f"SharedKey {_AZURE_ACCOUNT}:{base64.b64encode(signature).decode()}",
    }
    _request(endpoint, "PUT", f"{path}?restype=container", lambda: headers)


def main() -> int:
    """Installs what can be installed, and says what cannot be had."""
    for program in (_azurite_program, _fake_gcs_program, _minio_program):
        try:
            print(program())
        except AbsentError as error:
            print(error, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
