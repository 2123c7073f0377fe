"""docs/archive.md runs as it stands, on the real web log, over a real S3 server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pages import ROOT, environment_with_command, run_page

from .servers import SHARED, Server

BUCKET = "web-archive"
LOG = SHARED / "data" / "web_access.log"


def test_a_web_log_goes_to_a_bucket_and_comes_back(
    versitygw: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not LOG.exists():
        pytest.skip(f"the real input is not there: {LOG}")
    versitygw.make_bucket(BUCKET)
    variables = {
        "AWS_ENDPOINT_URL": versitygw.endpoint, "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": str(versitygw.options["access_key_id"]),
        "AWS_SECRET_ACCESS_KEY": str(versitygw.options["secret_access_key"]),
        "AWS_REGION": str(versitygw.options["region"]),
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "page"
    folder.mkdir()
    shutil.copy(LOG, folder / "access.log")
    monkeypatch.chdir(folder)
    run_page(ROOT / "docs" / "archive.md", environment_with_command(tmp_path / "bin"))
