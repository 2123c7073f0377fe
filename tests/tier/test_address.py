"""Addresses of tiers, and where secrets come from: never from what a catalog keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamcore.errors import TierError
from streamcore.tier.address import check_address, check_kept, connect
from streamcore.tier.objects import Objects

from .conftest import BUCKET
from .servers import Place, Server

Connected = Callable[..., Objects]
SECRETS = {
    "versitygw": {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"},
    "minio": {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"},
    "azurite": {"account_key": "AZURE_STORAGE_ACCOUNT_KEY"},
    "fake_gcs": {"bearer_token": "GOOGLE_BEARER_TOKEN"},
}


def without_secrets(kind: str, place: Place) -> Place:
    """The place with what a catalog may keep of its options."""
    kept = {name: value for name, value in place.options.items() if name not in SECRETS[kind]}
    return Place(place.url, check_kept(kept))


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_come_from_the_environment(
    kind: str, request: pytest.FixtureRequest, connected: Connected, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = request.getfixturevalue(kind)
    place = server.place(BUCKET, prefix)
    for option, variable in SECRETS[kind].items():
        monkeypatch.setenv(variable, place.options[option])
    objects = connected(without_secrets(kind, place))
    objects.put("a", b"1")
    assert objects.get("a")[0] == b"1"


def test_the_server_too_may_come_from_the_environment(
    versitygw: Server, connected: Connected, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = versitygw.place(BUCKET, prefix)
    names = {"endpoint": "AWS_ENDPOINT_URL", "region": "AWS_REGION", **SECRETS["versitygw"]}
    for option, variable in names.items():
        monkeypatch.setenv(variable, str(place.options[option]))
    with pytest.raises(TierError, match="needs the option allow_http"):
        connected(Place(place.url, {})).put("a", b"1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    objects = connected(Place(place.url, {}))
    objects.put("a", b"1")
    assert objects.get("a")[0] == b"1"
    with pytest.raises(TierError, match="needs the option allow_http"):
        connected(Place(place.url, {"allow_http": False})).put("a", b"1")


def test_secrets_come_from_a_callback(versitygw: Server, connected: Connected, prefix: str) -> None:
    place = versitygw.place(BUCKET, prefix)

    def credentials() -> dict[str, Any]:
        return {**{option: place.options[option] for option in SECRETS["versitygw"]}, "expires_at": None}

    objects = connected(without_secrets("versitygw", place), credential_provider=credentials)
    objects.put("a", b"1")
    assert objects.get("a")[0] == b"1"


def test_a_callback_that_fails_is_an_error(versitygw: Server, connected: Connected, prefix: str) -> None:
    def credentials() -> dict[str, Any]:
        raise RuntimeError("the vault is shut")

    place = without_secrets("versitygw", versitygw.place(BUCKET, prefix))
    objects = connected(place, credential_provider=credentials, deadline_s=0.5)
    with pytest.raises(TierError, match="vault is shut"):
        objects.get("a")


def test_the_emulator_of_azure_needs_no_account(
    azurite: Server, connected: Connected, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", azurite.endpoint)
    objects = connected(Place(f"az://{BUCKET}/{prefix}", {"use_emulator": True}))
    objects.put("a", b"1")
    assert objects.get("a")[0] == b"1"


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/prefix",
        "az://container/prefix?sig=secret",
        "gs://bucket/prefix#secret",
        "https://bucket.example.com",
        "s3:///prefix",
        "file://host/folder",
        "file:///",
        "folder",
        "",
    ],
)
def test_what_is_no_address_or_has_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        check_address(url)


@pytest.mark.parametrize(
    "option", ["access_key_id", "secret_access_key", "session_token", "account_key", "sas_token", "service_account_key"]
)
def test_a_catalog_keeps_no_secrets(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        check_kept({"region": "us-east-1", option: "secret"})


@pytest.mark.parametrize("seconds", [0, -1, 86400, "60", None, True, float("nan")])
def test_limits_of_time_are_checked(seconds: Any) -> None:
    for name in ("deadline_s", "timeout_s"):
        with pytest.raises(ValueError, match=name):
            connect("memory://limits", {name: seconds})


def test_an_option_that_nothing_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="acess_key_id"):
        connect("s3://bucket", {"acess_key_id": "key", "region": "us-east-1"})
    with pytest.raises(ValueError, match="region"):
        connect("file:///folder", {"region": "us-east-1"})
