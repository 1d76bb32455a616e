"""A headless Chromium, spoken to as the W3C's WebDriver standard says."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


class Browser:
    """One window. `console` is what the page said that is no mere note."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, path: str, **body: Any) -> Any:
        """POST, or GET when there is no body."""
        data = json.dumps(body.pop("json", body)).encode() if body else None
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        """Open the page and wait until it says that all is drawn, or that it failed."""
        self.call("/url", url=page.as_uri())
        for _ in range(300):
            if self.run("return document.documentElement.dataset.state"):
                return
            time.sleep(0.1)
        raise TimeoutError(f"{page} was not drawn in 30 s; console: {self.console()}")

    def run(self, script: str, *args: Any) -> Any:
        return self.call("/execute/sync", script=script, args=list(args))

    def devtools(self, command: str, **params: Any) -> Any:
        return self.call("/goog/cdp/execute", json={"cmd": command, "params": params})

    def console(self) -> list[str]:
        return [
            e["message"] for e in self.call("/se/log", type="browser") if e["level"] in ("SEVERE", "WARNING")
        ]

    def click(self, x: float, y: float) -> None:
        """A true click of the mouse at a place of the window."""
        moves = [{"type": "pointerMove", "x": round(x), "y": round(y)}, {"type": "pointerDown", "button": 0},
                 {"type": "pointerUp", "button": 0}]  # fmt: skip
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        self.call("/actions", actions=[mouse])


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, gone afterwards."""
    assert DRIVER
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    browser = Browser(f"http://127.0.0.1:{port}")
    options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    try:
        _wait(browser)
        session = browser.call("/session", capabilities={"alwaysMatch": wanted})
        browser.url += f"/session/{session['sessionId']}"
        yield browser
        with urlopen(Request(browser.url, method="DELETE"), timeout=60):
            pass
    finally:
        driver.terminate()
        driver.wait(20)


def _wait(browser: Browser) -> None:
    for _ in range(100):
        with contextlib.suppress(URLError, ConnectionError):
            if browser.call("/status")["ready"]:
                return
        time.sleep(0.1)
    raise TimeoutError("chromedriver did not start in 10 s")
