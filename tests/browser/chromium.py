"""Debian's Chromium without a window, driven by selenium: starting it, and what a test asks of a page."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SIZE = (1280, 800)
ASKED, FAILED = "requestWillBeSent", "loadingFailed"


def missing() -> list[str]:
    """What a test needs and this machine lacks."""
    found = [name for name in PROGRAMS if not shutil.which(name)]
    try:
        import selenium  # noqa: F401
    except ImportError:
        found.append("selenium")
    return found


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser with a new profile, which notes what its pages say and request."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(60)
        metrics = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield driver
    finally:
        driver.quit()


def opened(driver: Any, file: Path) -> None:
    """Goes to a page of rollouts and waits until they are shown."""
    from selenium.webdriver.support.ui import WebDriverWait

    for kind in ("browser", "performance"):
        driver.get_log(kind)  # what was said before is not this page's
    driver.get(file.as_uri())
    WebDriverWait(driver, 30, 0.02).until(
        lambda d: d.execute_script("return document.documentElement.dataset.ready === 'yes'")
    )


def requests(driver: Any) -> list[str]:
    """What the page asked for since it was opened, itself included, and no policy of its own held back."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    of = {name: [e["params"] for e in events if e["method"] == f"Network.{name}"] for name in (ASKED, FAILED)}
    held = {failed["requestId"] for failed in of[FAILED] if failed.get("blockedReason") == "csp"}
    return [asked["request"]["url"] for asked in of[ASKED] if asked["requestId"] not in held]


def complaints(driver: Any) -> list[str]:
    """What the console holds since the page was opened."""
    return [entry["message"] for entry in driver.get_log("browser")]


def press(driver: Any, *keys: str) -> None:
    """Keys as a person hits them, one after the other."""
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(driver).send_keys(key).perform()
