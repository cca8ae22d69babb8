"""A headless Chromium of the system, over the pipe of its DevTools protocol: no driver and no package besides."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowDown": (40, ""), "ArrowUp": (38, "")}
KEYS |= {"ArrowLeft": (37, ""), "ArrowRight": (39, ""), "End": (35, ""), "Home": (36, "")}


def installed() -> str | None:
    """The path of a browser, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. `problems` are what its console said as errors, what it threw, and what its policy blocked."""

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        self.folder = tempfile.mkdtemp(prefix="saefast-chromium-")
        (their_read, self.write_fd), (self.read_fd, their_write) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (their_read, their_write)]
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-first-run",
            "--disable-gpu",
            "--hide-scrollbars",
        ]
        flags += [
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--mute-audio",
        ]
        flags += ["--disable-extensions", "--force-color-profile=srgb", f"--user-data-dir={self.folder}"]
        pipes = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'  # the browser reads from 3 and writes to 4
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                pipes,
                "bash",
                installed() or "",
                *flags,
                f"--window-size={width},{height}",
                "about:blank",
            ],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (their_read, their_write, *theirs):
            os.close(fd)
        self.waiting, self.number, self.events = b"", 0, []
        self.problems: list[str] = []
        self.session: str | None = None
        pages = [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self._call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self.size(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.session = None
            self._call("Browser.close")
        except OSError:
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.write_fd)
        os.close(self.read_fd)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, method: str, **params: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_fd, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self.number:
                if "error" in found:
                    raise OSError(f"{method}: {found['error']['message']}")
                return found["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            piece = os.read(self.read_fd, 1 << 20)
            if not piece:
                raise OSError("the browser has closed")
            self.waiting += piece
        text, self.waiting = self.waiting.split(b"\0", 1)
        found = json.loads(text)
        method, params = found.get("method"), found.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(
                " ".join(str(one.get("value") or one.get("description")) for one in params["args"])
            )
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {params['message']}")
        return found

    def size(self, width: int, height: int, phone: bool = False, ratio: float = 1) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", **screen)

    def media(self, scheme: str = "light", motion: str = "no-preference") -> None:
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        some = [{"name": name, "value": value} for name, value in features.items()]
        self._call("Emulation.setEmulatedMedia", features=some)

    def before_pages(self, script: str) -> None:
        """Run this in every page before its own scripts."""
        self._call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, url: str, until: str = "performance.getEntriesByName('ready').length > 0") -> None:
        """A new page, even where only the part behind # is another one."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)
        self.until(until)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        found = self._call("Runtime.evaluate", expression=script, **options)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"].get("exception", {}).get("description", found))
        return found["result"].get("value")

    def until(self, condition: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self.run(f"Boolean({condition})"):
                    return
            except (AssertionError, OSError):  # between two pages
                pass
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s: {condition}; problems: {self.problems}")

    def go(self, route: str) -> None:
        """To another #view of the page, as a link does, until it is shown."""
        self.run(f"performance.clearMarks(), location.hash = {json.dumps(route)}")
        self.until(f"performance.getEntriesByName('shown {route}').length")

    def press(self, *keys: str) -> None:
        for key in keys:
            code, text = KEYS.get(key, (0, key))
            event = {"key": key, "windowsVirtualKeyCode": code, "text": text}
            self._call("Input.dispatchKeyEvent", type="keyDown", **event)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def move(self, x: float, y: float) -> None:
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Any) -> None:
        with open(path, "wb") as file:
            file.write(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
