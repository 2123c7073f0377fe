"""Object stores that run for as long as the tests, and places in them that are nobody else's."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamcore as sc
from streamcore.tier.address import connect
from streamcore.tier.objects import Objects

from .fault_proxy import FaultProxy
from .servers import SERVERS, AbsentError, Place, Server

BUCKET = "streamcore-tests"


@pytest.fixture
def tier_path(tmp_path: Path) -> Path:
    """The folder that is the tier."""
    return tmp_path / "tier"


@pytest.fixture
def store(store_path: Path, tier_path: Path) -> Iterator[sc.Store]:
    """A store with a tier in a folder, whose background work is done by hand."""
    with sc.open(store_path, maintenance=False, tier=f"file://{tier_path}") as opened:
        yield opened


def _running(name: str, factory: pytest.TempPathFactory) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(SERVERS[name](factory.mktemp(name)))
        except AbsentError as error:
            pytest.skip(str(error))
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server with the bucket BUCKET."""
    yield from _running("versitygw", tmp_path_factory)


@pytest.fixture(scope="session")
def versitygw_in_turn(versitygw: Server) -> Iterator[Server]:
    """`versitygw` with one request at a time, which makes what it does to an object atomic."""
    with FaultProxy(versitygw.endpoint, in_turn=True) as running:
        yield dataclasses.replace(versitygw, endpoint=running.endpoint)


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another S3 server with the bucket BUCKET."""
    yield from _running("minio", tmp_path_factory)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An Azure Blob Storage server with the container BUCKET."""
    yield from _running("azurite", tmp_path_factory)


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Google Cloud Storage server with the bucket BUCKET."""
    yield from _running("fake-gcs", tmp_path_factory)


@pytest.fixture
def prefix() -> str:
    """A folder in a bucket that is this test's alone."""
    return f"of-{uuid.uuid4().hex}"


@pytest.fixture
def make_place(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Callable[[str], Place]:
    """make_place(kind): an empty place in "memory", a "folder" or the server of a fixture."""

    def make(kind: str) -> Place:
        if kind == "memory":
            return Place(f"memory://{prefix}", {})
        if kind == "folder":
            return Place(f"file://{tmp_path}/objects", {})
        server: Server = request.getfixturevalue(kind)
        return server.place(BUCKET, prefix)

    return make


@pytest.fixture
def connected() -> Iterator[Callable[..., Objects]]:
    """connected(place, **options): its objects, closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def connected(place: Place, **options: Any) -> Objects:
            objects = connect(place.url, {**place.options, **options})
            stack.callback(objects.close)
            return objects

        yield connected


@pytest.fixture
def proxy(versitygw: Server) -> Iterator[FaultProxy]:
    """What makes things go wrong on the way to `versitygw`."""
    with FaultProxy(versitygw.endpoint) as running:
        yield running


@pytest.fixture
def faulty(versitygw: Server, proxy: FaultProxy, prefix: str) -> Place:
    """An empty place in `versitygw`, on the way through `proxy`."""
    return versitygw.place(BUCKET, prefix, endpoint=proxy.endpoint)
