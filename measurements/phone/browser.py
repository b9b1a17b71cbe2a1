"""Headless Chromium, for measurements of pages and for their tests."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
PAGE_SECONDS = 90


@contextmanager
def browser(*flags: str, width: int = 1400, height: int = 1000) -> Iterator[Any]:
    """Opens Chromium with an empty profile and the given flags besides `FLAGS`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def wait_for(driver: Any, what: str, script: str, wanted: Callable[[Any], bool] = bool) -> Any:
    """Returns the value of a JavaScript expression as soon as it is the one that is `wanted`."""
    limit = time.monotonic() + PAGE_SECONDS
    while not wanted(found := driver.execute_script(f"return {script}")):
        if time.monotonic() > limit:
            raise TimeoutError(f"{what} did not appear within {PAGE_SECONDS} s, but {found!r}")
        time.sleep(0.2)
    return found
