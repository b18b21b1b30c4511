"""A real browser for the pages: Debian's Chromium, installed where it is missing and can be."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.debian import missing_reason

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage", "--mute-audio")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser; where it cannot be had the test is left out, but on CI (CI=true) that is a failure."""
    reason = None if _program() else missing_reason(["chromium"], ["chromium"])
    program = _program()
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no Chromium: {reason}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS), timeout=180_000)
        yield browser
        browser.close()


def _program() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)
