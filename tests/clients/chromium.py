"""Headless Chromium by its DevTools protocol, over the pipe it offers: no driver, no port, no package.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
REMEDY = "no Chromium on PATH (Debian, Ubuntu: `apt install chromium`; macOS: `brew install --cask chromium`)"
ANSWER_SECONDS = 60.0

_OPTIONS = (
    "--headless", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-sync",
    "--no-default-browser-check", "--no-first-run", "--no-proxy-server", "--password-store=basic", "--mute-audio",
)  # fmt: skip
_WITH_PIPE = (
    "import os,sys; os.dup2(int(sys.argv[1]),3); os.dup2(int(sys.argv[2]),4); os.execv(sys.argv[3],sys.argv[3:])"
)


def find_chromium() -> str | None:
    """The first browser on PATH that speaks the protocol."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class DevToolsError(Exception):
    """The browser, or a script in a page, says no."""


class Browser:
    """One Chromium process."""

    def __init__(self, program: str, folder: Path) -> None:
        commands_read, self._commands = os.pipe()
        self._answers, answers_write = os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands_read, answers_write)]
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # root cannot have one
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WITH_PIPE, *map(str, theirs), program, *_OPTIONS, *sandbox,
             f"--user-data-dir={folder}"],
            pass_fds=theirs, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (commands_read, answers_write, *theirs):
            os.close(fd)
        self._last_id = 0
        self._replies: dict[int, Any] = {}
        self._news = threading.Condition()
        self._is_gone = False
        threading.Thread(target=self._read, daemon=True).start()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """The result of a command. Raises DevToolsError when it fails or the browser is gone."""
        with self._news:
            self._last_id += 1
            number = self._last_id
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        with self._news:
            if not self._news.wait_for(lambda: number in self._replies or self._is_gone, ANSWER_SECONDS):
                raise DevToolsError(f"{method}: no answer within {ANSWER_SECONDS:.0f} s")
            reply = self._replies.pop(number, None)
        if reply is None or "error" in reply:
            raise DevToolsError(f"{method}: {reply['error']['message'] if reply else 'the browser is gone'}")
        return reply["result"]

    def new_profile(self) -> Profile:
        """An empty storage, as of a person who was never here."""
        return Profile(self, self.call("Target.createBrowserContext")["browserContextId"])

    def stop(self) -> None:
        """Its profile is thrown away, so it need not say goodbye."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: it and its renderers
        self._process.wait()
        os.close(self._commands)

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._answers, 65_536):
            *messages, rest = (rest + chunk).split(b"\0")
            with self._news:
                for message in messages:
                    document = json.loads(message)
                    if "id" in document:
                        self._replies[document["id"]] = document
                self._news.notify_all()
        with self._news:
            self._is_gone = True
            self._news.notify_all()
        os.close(self._answers)


class Profile:
    """Pages that share one storage."""

    def __init__(self, browser: Browser, context: str) -> None:
        self._browser, self._context = browser, context

    def open(self, url: str) -> Page:
        """A tab that shows `url`, loaded."""
        created = self._browser.call("Target.createTarget", url="about:blank", browserContextId=self._context)
        page = Page(self._browser, created["targetId"])
        page.go(url)
        return page

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, target: str) -> None:
        self._browser, self._target = browser, target
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Network.enable")

    def go(self, url: str) -> None:
        """Leave for `url` and wait until it is loaded, scripts included."""
        self._call("Page.navigate", url=url)
        self._wait_loaded(url)

    def reload(self) -> None:
        """As F5."""
        url = self.run("location.href")
        self.run("window.isOld = true")
        self._call("Page.reload")
        self._wait_loaded(url)

    def run(self, script: str) -> Any:
        """The value of an expression; of a promise, what it brings. Raises DevToolsError with what is thrown."""
        done = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise DevToolsError(details.get("exception", {}).get("description") or details["text"])
        return done["result"].get("value")

    def click(self, selector: str, button: str = "left") -> None:
        """The mouse on the middle of an element."""
        x, y = self.run(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def network(self, *, is_offline: bool = False) -> None:
        """Take the network away from this tab, or give it back."""
        self._call(
            "Network.emulateNetworkConditions",
            offline=is_offline, latency=0, downloadThroughput=-1, uploadThroughput=-1,
        )  # fmt: skip

    def storage(self) -> Mapping[str, Any]:
        """localStorage, read as JSON."""
        return dict(self.run("Object.fromEntries(Object.entries(localStorage).map(([k, v]) => [k, JSON.parse(v)]))"))

    def close(self) -> None:
        """Close the tab, in good order: its page hears that it is hidden."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, self._session, **parameters)

    def _wait_loaded(self, url: str) -> None:
        # asked inside of the page that goes, the question fails; then it is asked again
        script = (
            f"location.href === {json.dumps(url)} && !window.isOld && (document.readyState === 'complete' || "
            "new Promise(done => addEventListener('load', () => done(true))))"
        )
        for _ in range(1000):
            with suppress(DevToolsError):
                if self.run(script):
                    return
            threading.Event().wait(0.01)
        raise DevToolsError(f"{url} did not load")
