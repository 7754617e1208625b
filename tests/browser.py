"""A headless Chromium, led by its debugging protocol over two pipes: nothing but Python is needed for it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


def installed() -> str | None:
    """The program of a Chromium, or None."""
    return next((path for name in NAMES if (path := which(name))), None)


@dataclass
class Browser:
    """One page of a browser, and what it said since it was last opened."""

    to: BinaryIO
    fro: BinaryIO
    session: str = ""
    number: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.to.write(json.dumps(message).encode() + b"\0")
        self.to.flush()
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.fro.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser ended")
            data += byte
        message: dict[str, Any] = json.loads(data)
        return message

    def open(self, url: str, *, width: int, height: int = 900) -> None:
        """Open a page in a window of that width and wait until it is loaded."""
        self.events.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)
        while not self.said("Page.loadEventFired"):
            self.events.append(self._read())

    def run(self, script: str) -> Any:
        """The value of an expression in the page, of a promise too."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def said(self, method: str) -> list[dict[str, Any]]:
        """What came with the events of a kind since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def errors(self) -> list[str]:
        """What the console of the page shows in red."""
        logged = [said["entry"] for said in self.said("Log.entryAdded")]
        found = [f"{entry['text']} {entry.get('url', '')}" for entry in logged if entry["level"] == "error"]
        found += [str(said["exceptionDetails"]) for said in self.said("Runtime.exceptionThrown")]
        return found + [str(s["args"]) for s in self.said("Runtime.consoleAPICalled") if s["type"] == "error"]

    def requested(self) -> list[str]:
        """Every address that the page asked for."""
        return [said["request"]["url"] for said in self.said("Network.requestWillBeSent")]


@contextmanager
def opened(profile: Path) -> Iterator[Browser]:
    """Start a browser with a page, whose profile is kept in a folder of its own, and end it."""
    (our_read, their_write), (their_read, our_write) = os.pipe(), os.pipe()
    program = installed()
    assert program is not None
    command = [program, *OPTIONS, f"--user-data-dir={profile}"]
    numbered = f'exec "$@" 3<&{their_read} 4>&{their_write} 2>/dev/null'  # the pipes are to be 3 and 4
    process = subprocess.Popen(["bash", "-c", numbered, "bash", *command], pass_fds=(their_read, their_write))
    os.close(their_read)
    os.close(their_write)
    with os.fdopen(our_write, "wb") as to, os.fdopen(our_read, "rb") as fro:
        browser = Browser(to, fro)
        page = browser.call("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        yield browser
        browser.session = ""
        browser.call("Browser.close")
    process.wait(timeout=30)
