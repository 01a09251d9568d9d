"""Headless Chromium for tests, over its DevTools pipe: no driver, no port, no further package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]


class Page:
    """One tab. `events` holds everything the browser reported of it, oldest first."""

    def __init__(self, pipe: "_Pipe", session: str) -> None:
        self._pipe, self._session = pipe, session
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a DevTools command; raises RuntimeError if the browser refuses it."""
        answer, events = self._pipe.call(method, params, self._session)
        self.events += [e for e in events if e.get("sessionId") == self._session]
        return answer

    def open(self, address: str, timeout_s: float = 30.0) -> None:
        """Goes to an address and waits for its load event."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState == 'complete'", timeout_s)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 30.0) -> Any:
        """The first true value of an expression."""
        end = time.monotonic() + timeout_s
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {expression}"
            time.sleep(0.1)
        return value

    def errors(self) -> list[str]:
        """What the page wrote to the console as an error, and exceptions nobody caught."""
        self.evaluate("0")  # fetches what was reported meanwhile
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"])[:500])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(json.dumps(params["args"])[:500])
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, without data: and blob:."""
        self.evaluate("0")
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def frame(self, timeout_s: float = 30.0) -> "Page":
        """The document of the page's one frame that is isolated from it."""
        end = time.monotonic() + timeout_s
        while True:
            targets = self._pipe.call("Target.getTargets", {})[0]["targetInfos"]
            frames = [t["targetId"] for t in targets if t["type"] == "iframe"]
            if frames:
                wanted = {"targetId": frames[0], "flatten": True}
                return Page(
                    self._pipe, self._pipe.call("Target.attachToTarget", wanted)[0]["sessionId"]
                )
            assert time.monotonic() < end, f"no frame within {timeout_s:.0f} s"
            time.sleep(0.2)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Writes a PNG of the window, or of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


class _Pipe:
    """JSON messages over two file descriptors, each ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._buffer, self._number = b"", 0

    def call(
        self, method: str, params: dict[str, Any], session: str | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        text = json.dumps(message | ({"sessionId": session} if session else {}))
        os.write(self._out, text.encode() + b"\0")
        events = []
        while True:
            found = self._read(timeout_s=60)
            if found.get("id") != self._number:
                events.append(found)
            elif "error" in found:
                raise RuntimeError(f"{method}: {found['error']['message']}")
            else:
                return found["result"], events

    def _read(self, timeout_s: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], timeout_s)[0], "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser ended"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))


@contextmanager
def open_browser(width: int = 1400, height: int = 1000, *flags: str) -> Iterator[Page]:
    """A tab of a fresh browser of its own; `flags` go to Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "this test needs a browser: apt-get install chromium"
    browser_in, to_browser = os.pipe()
    from_browser, browser_out = os.pipe()
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, *flags, f"--window-size={width},{height}"]
        command.append(f"--user-data-dir={profile}")
        redirect = f'exec "$@" 3<&{browser_in} 4>&{browser_out}'  # the numbers Chromium expects
        process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(browser_in, browser_out),
        )
        os.close(browser_in)
        os.close(browser_out)
        try:
            pipe = _Pipe(to_browser, from_browser)
            target, _ = pipe.call("Target.createTarget", {"url": "about:blank"})
            wanted = {"targetId": target["targetId"], "flatten": True}
            session, _ = pipe.call("Target.attachToTarget", wanted)
            yield Page(pipe, session["sessionId"])
        finally:
            process.terminate()
            process.wait(timeout=30)
            os.close(to_browser)
            os.close(from_browser)
