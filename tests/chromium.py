"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """One tab.

    Attributes:
        urls: What was requested, in order, but for what a Content-Security-Policy did not let out.
        errors: What the console shows as an error: exceptions, failed loads, refusals of the policy.
        faked: Path -> the status and JSON that the page gets in place of the server's answer; None: none.
    """

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect  # uvicorn[standard] has it

        flags = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # it does not start for root otherwise
        flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [PROGRAM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.urls: list[str] = []
        self.errors: list[str] = []
        self.faked: dict[str, tuple[int, Any] | None] = {}
        self._sent = 0
        self._requests: dict[str, str] = {}  # id -> URL
        self._loaded = False
        address = profile / "DevToolsActivePort"
        until(lambda: address.exists() and address.read_text().count("\n") == 1, "Chromium does not start")
        port, path = address.read_text().split()
        self._exit = ExitStack()
        self._socket = self._exit.enter_context(connect(f"ws://127.0.0.1:{port}{path}", max_size=None))
        self._session: str | None = None
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Fetch"):
            self.command(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._exit.close()
        self.process.terminate()
        self.process.wait()

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are noted."""
        self._send(method, **params)
        number = self._sent
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _send(self, method: str, **params: Any) -> None:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv(timeout=60))
        if "method" in message:
            self._note(message["method"], message["params"])
        return message

    def _note(self, event: str, of: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Fetch.requestPaused":
            self._answer(of["requestId"], urlsplit(of["request"]["url"]).path)
        elif event == "Network.requestWillBeSent":
            self.urls.append(of["request"]["url"])
            self._requests[of["requestId"]] = of["request"]["url"]
        elif event == "Network.loadingFailed" and of.get("blockedReason") == "csp":
            self.urls.remove(self._requests[of["requestId"]])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(of["exceptionDetails"]["exception"].get("description", "exception"))
        elif event == "Log.entryAdded" and of["entry"]["level"] == "error":
            self.errors.append(f"{of['entry']['text']} {of['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and of["type"] in ("error", "assert"):
            self.errors.append(str(of["args"]))

    def _answer(self, request: str, path: str) -> None:
        if path not in self.faked:
            self._send("Fetch.continueRequest", requestId=request)
        elif answer := self.faked[path]:
            status, body = answer
            body = base64.b64encode(json.dumps(body).encode()).decode()
            self._send("Fetch.fulfillRequest", requestId=request, responseCode=status, body=body)

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded, with nothing noted before."""
        self.urls.clear()
        self.errors.clear()
        self._loaded = False
        self.command("Page.navigate", url=url)
        while not self._loaded:
            self._receive()

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        done = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        until(lambda: self.js(f"Boolean({expression})"), expression)

    def type(self, selector: str, text: str) -> None:
        """Replace a field's text, by the keyboard."""
        self.js(f"document.querySelector({selector!r}).focus(); document.activeElement.select()")
        self.key("Delete")
        self.command("Input.insertText", text=text)

    def key(self, name: str, modifiers: int = 0) -> None:
        """Press a key; modifiers: 2 is Ctrl."""
        code = {"Enter": 13, "Delete": 46, "Tab": 9}[name]
        for what in ("rawKeyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=what, key=name, code=name, modifiers=modifiers,
                         windowsVirtualKeyCode=code)  # fmt: skip


def until(condition: Any, what: str, seconds: float = 60) -> None:
    """Wait for a condition; the time is no promise, only what a loaded machine may need."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
