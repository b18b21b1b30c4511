"""A real browser for the pages: Debian's Chromium, installed where it is missing and can be."""

import os
import shutil
import subprocess as sp
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage", "--mute-audio")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser; where it cannot be had the test is left out, but on CI (CI=true) that is a failure."""
    program = _program()
    reason = None if program else _install()
    program = program or _program()
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no Chromium: {reason}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


def _program() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def _install() -> str:
    """Try to install it; returns what came of it."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "install it by hand, or be root on Debian"
    install = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
    for command in (install, ["apt-get", "update"], install):
        process = sp.run(
            command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
        )
        if process.returncode == 0 and command is install:
            return "installed"
    return process.stderr[-500:]
