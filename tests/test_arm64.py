"""tools/test_arm64: what counts as the same number, and where packages come from. Nothing is emulated."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import _arm64

PROGRAM = runpy.run_path(str(Path(_arm64.__file__).with_name("test_arm64")), run_name="test_arm64")
HERE = np.array([0.0, 1.0, -2.0, np.nan, np.inf])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ([0, 0, 0, 0, 0], 0.0),
        ([5e-7, 0, 0, 0, 0], 0.5),
        ([0, 0, 4.2e-5, 0, 0], 2.0),
        ([0, np.nan, 0, 0, 0], np.inf),
        ([np.inf, 0, 0, 0, 0], np.inf),
    ],
)
def test_deviation_in_units_of_what_is_allowed(change, expected):
    assert PROGRAM["deviation"](HERE, HERE + change) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "there", [HERE[:-1], HERE.astype(str), np.array([0.0, 1.0, -2.0, 3.0, np.inf]), np.arange(5)]
)
def test_what_is_of_another_kind_is_infinitely_far(there):
    assert PROGRAM["deviation"](HERE, there) == np.inf


def test_texts_are_the_same_or_not():
    texts = np.array(["frame 3: INPUT_FROZEN"])
    assert PROGRAM["deviation"](texts, texts.copy()) == 0
    assert PROGRAM["deviation"](texts, np.array(["frame 4: INPUT_FROZEN"])) == np.inf


def apt(monkeypatch, listed):
    done = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(_arm64.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(_arm64.subprocess, "run", lambda *_, **__: done)


def test_the_mirror_is_apts_own(monkeypatch):
    lines = (
        "Debian-Security main http://security.test/debian",
        "Other main http://other.test/x",
        " main http://nameless.test/x",
        "Debian contrib http://mirror.test/contrib",
        "Debian main http://mirror.test/debian",
        "Debian main http://second.test/debian",
    )
    apt(monkeypatch, "\n".join(lines) + "\n")
    assert _arm64.mirror() == "http://mirror.test/debian"


@pytest.mark.parametrize("listed", ["", "Ubuntu main http://mirror.test/ubuntu\n"])
def test_no_mirror_is_said(listed, monkeypatch):
    apt(monkeypatch, listed)
    with pytest.raises(SystemExit, match="no Debian mirror among its sources"):
        _arm64.mirror()


def test_no_apt_is_said(monkeypatch):
    monkeypatch.setattr(_arm64.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="there is no apt-get"):
        _arm64.mirror()
    with pytest.raises(SystemExit, match="qemu-user-static and mmdebstrap must be installed; without apt"):
        _arm64.need_programs()


def test_a_step_that_fails_says_what_it_takes():
    with pytest.raises(SystemExit, match=r"^wheels: failed \(it takes a package index\): false x$"):
        _arm64.run("wheels", ["false", "x"], "it takes a package index")
