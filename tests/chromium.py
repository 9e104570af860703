"""A real browser without a window: what a page looks like once it is laid out."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# A page must not need the network: no name resolves.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def chromium(page, *options, timeout=60):
    """Open a page; return what the browser prints."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *OPTIONS, f"--user-data-dir={profile}", *options, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


SIZE = "--window-size=1100,3000"


def screenshot(page, path, *options):
    """Picture of a page; ``options`` of the same start of the browser, which is what takes the time."""
    chromium(page, f"--screenshot={path}", SIZE, *options)
    return path


def measured(page, script):
    """Document of a copy of the page in which ``script`` ran, the page's own policy lifted for it."""
    text = page.read_text(encoding="utf-8")
    policy, rest = text.split("<meta http-equiv", 1)[1].split(">", 1)
    assert "default-src" in policy
    copy = Path(f"{page}.measured.html")
    copy.write_text(f"<!DOCTYPE html>{rest}<script>{script}</script>", encoding="utf-8")
    return chromium(copy, SIZE, "--dump-dom")
