"""Small file systems of our own, to fill them and to make them read-only. Needs the right to mount."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(*command: str) -> str:
    """Runs a command; skips the test when it cannot do its work."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"there is no {command[0]}")
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command)} does not work here: {done.stderr.strip()}")
    return done.stdout


class Mount:
    """A file system in memory, or one of a given kind in a file, mounted at a folder."""

    def __init__(self, path: Path, kind: str, size_mib: int) -> None:
        if not sys.platform.startswith("linux"):
            pytest.skip("only Linux mounts in this way")
        self.path = path
        path.mkdir()
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "streamcore-test", str(path))
        else:
            image = path.with_suffix(".image")
            with image.open("wb") as file:
                file.truncate(size_mib << 20)
            run(f"mkfs.{kind}", "-q", "-F", "-m", "0", str(image))
            run("mount", "-o", "loop", str(image), str(path))

    def make_read_only(self) -> None:
        """From now on every write fails with EROFS."""
        run("mount", "-o", "remount,ro", str(self.path))

    def unmount(self) -> None:
        """Takes it away, also when something in it is still mapped."""
        subprocess.run(["umount", "-l", str(self.path)], check=True)
