"""Where a tier is: an address, and what else it takes to get there. What is secret never goes into a catalog."""

from __future__ import annotations

import datetime
import os
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

from streamcore.tier.folder import FolderObjects
from streamcore.tier.objects import Objects, Retries

SCHEMES = ("file", "memory", "s3", "gs", "az")
KEPT_OPTIONS = frozenset(
    (
        *("endpoint", "region", "allow_http", "virtual_hosted_style_request", "skip_signature"),
        *("account_name", "use_emulator", "deadline_s", "timeout_s"),
    )
)
_OURS = ("deadline_s", "timeout_s", "allow_http", "client_options", "credential_provider")
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_TIMEOUT_S = 30.0
_memories: dict[str, Any] = {}  # what was put into memory:// stays for the life of the process
_memories_lock = threading.Lock()


def check_address(url: Any) -> str:
    """An address without a slash at its end. Raises TypeError and ValueError for what is none, or has a secret."""
    if not isinstance(url, str):
        raise TypeError(f"the address of a tier is {type(url).__name__}; a str is needed")
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{url!r} is no address of a tier: {error}") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"the address of a tier is a place alone, {parts.scheme}://…: keys and tokens come from the environment, "
            "a credential provider or tier_options"
        )
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{url!r} is no address of a tier; {', '.join(s + '://…' for s in SCHEMES)} are allowed")
    if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
        raise ValueError(f"{url!r} names no folder; file:///path/to/folder is needed")
    if parts.scheme in ("s3", "gs", "az") and not parts.netloc:
        raise ValueError(f"{url!r} names no bucket; {parts.scheme}://bucket/prefix is needed")
    return url.rstrip("/") if parts.path or parts.netloc else url


def check_kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a catalog may keep. Raises ValueError for the others, secrets among them."""
    for name in options:
        if name not in KEPT_OPTIONS:
            raise ValueError(
                f"the option {name!r} is not kept in a catalog, where everybody can read it; "
                f"{', '.join(sorted(KEPT_OPTIONS))} are. Give it to sc.open(…, tier_options=…) or in the environment"
            )
    return dict(options)


def _allows_http(address: str, given: Mapping[str, Any]) -> bool:
    """Whether requests may go unencrypted: by an option, by the server's address, by the variable of other tools."""
    if "allow_http" in given:
        return bool(given["allow_http"])
    variable = _ALLOW_HTTP.get(address.split(":", 1)[0], "")
    return str(given.get("endpoint", "")).startswith("http://") or os.environ.get(variable, "").lower() in ("true", "1")


def connect(url: str, options: Mapping[str, Any] | None = None) -> Objects:
    """The objects at an address.

    options: what obstore takes as configuration of the kind of place (`endpoint`, `region`, `access_key_id`, …), its
    `client_options` and `credential_provider`, and of ours `deadline_s` (of each call, attempts and pauses included,
    default 60), `timeout_s` (of one request, default 30) and `allow_http`.
    """
    address = check_address(url)
    given = dict(options or {})
    deadline_s = _seconds(given, "deadline_s", Retries.deadline_s)
    timeout_s = min(_seconds(given, "timeout_s", _TIMEOUT_S), deadline_s)
    retries = Retries(deadline_s, min(0.1, deadline_s / 10), min(5.0, deadline_s))
    if address.startswith("file:"):
        if extra := set(given) - {"deadline_s", "timeout_s"}:
            raise ValueError(f"a folder has no option {min(extra)!r}; deadline_s is allowed")
        return FolderObjects(address, retries)
    try:
        import obstore.store as stores
        from obstore.exceptions import BaseError
    except ImportError:
        scheme = address.split(":")[0]
        raise ImportError(f"a tier at {scheme}:// needs obstore: pip install 'streamcore[tier]'") from None
    from streamcore.tier.remote import RemoteObjects

    if address.startswith("memory:"):
        with _memories_lock:
            store = _memories.setdefault(address, stores.MemoryStore())
            return RemoteObjects(address, retries, store, store)
    client: dict[str, Any] = {"timeout": datetime.timedelta(seconds=timeout_s), **given.get("client_options", {})}
    if _allows_http(address, given):
        client["allow_http"] = True
    if address.startswith("gs:") and "endpoint" in given:
        given["base_url"] = given.pop("endpoint")  # one name for it, wherever the tier is
    made: Any = stores.from_url  # which takes other types for each kind of place

    def store_with(**retry_config: Any) -> Any:
        try:
            return made(
                address,
                config={name: value for name, value in given.items() if name not in _OURS},
                client_options=client,
                retry_config=retry_config,
                credential_provider=given.get("credential_provider"),
            )
        except BaseError as error:  # without its source, which has the configuration
            raise ValueError(f"no tier at {address}: {str(error).partition('Debug source:')[0].strip()}") from None

    backoff = {
        "init_backoff": datetime.timedelta(seconds=retries.first_pause_s),
        "max_backoff": datetime.timedelta(seconds=retries.longest_pause_s),
    }
    return RemoteObjects(
        address,
        retries,
        store_with(max_retries=0),  # the attempts are ours, so that they are seen and counted
        store_with(max_retries=10, retry_timeout=datetime.timedelta(seconds=deadline_s), backoff=backoff),
    )


def _seconds(options: dict[str, Any], name: str, default: float) -> float:
    value = options.pop(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 86400:
        raise ValueError(f"{name} is {value!r}; seconds above 0 and below 86400 are allowed")
    return float(value)
