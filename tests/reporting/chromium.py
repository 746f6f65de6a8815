"""Headless Chromium by its debugging protocol, over a pipe: no library needed.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS = 60.0


def find() -> str | None:
  """Path of the browser; None = there is none here."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """One page of a headless browser.

  Attributes:
    events: all events so far, as the protocol names them.
  """

  def __init__(self, program: str, profile: pathlib.Path):
    """Starts the browser with an empty profile and an empty page."""
    to_read, self._to = os.pipe()
    self._from, to_write = os.pipe()
    # The browser reads file descriptor 3 and writes 4.
    script = f'exec 3<&{to_read} 4>&{to_write}; exec "$@"'
    self._process = subprocess.Popen(
      [
        *("/bin/bash", "-c", script, "browser", program, "--headless=new"),
        *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking"),
        *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
        "about:blank",
      ],
      pass_fds=(to_read, to_write),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    os.close(to_read)
    os.close(to_write)
    self._left, self._number, self._session = b"", 0, None
    self.events: list[dict[str, Any]] = []
    self._page()

  def _page(self) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
      targets = self.call("Target.getTargets")["targetInfos"]
      pages = [each["targetId"] for each in targets if each["type"] == "page"]
      if pages or time.monotonic() > deadline:
        break
      time.sleep(0.1)
    attached = self.call(
      "Target.attachToTarget", targetId=pages[0], flatten=True
    )
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """Calls a method of the protocol and returns its result."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._to, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._receive()
      if answer.get("id") == self._number:
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]
      self.events.append(answer)

  def _receive(self) -> dict[str, Any]:
    while b"\0" not in self._left:
      ready, _, _ = select.select([self._from], [], [], _SECONDS)
      assert ready, "the browser does not answer"
      some = os.read(self._from, 1 << 20)
      assert some, "the browser has ended"
      self._left += some
    one, _, self._left = self._left.partition(b"\0")
    return json.loads(one)

  def open(self, path: pathlib.Path) -> None:
    """Opens a file and waits until it is loaded."""
    self.events.clear()
    self.call("Page.navigate", url=path.absolute().as_uri())
    while not any(
      e.get("method") == "Page.loadEventFired" for e in self.events
    ):
      self.events.append(self._receive())

  def value(self, expression: str) -> Any:
    """The value of a JavaScript expression on the page."""
    found = self.call(
      "Runtime.evaluate", expression=expression, returnByValue=True
    )
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  def look(self, width: int, height: int = 900, scheme: str = "light") -> None:
    """Sets the size of the window in pixels, and the colour scheme."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )
    self.call(
      "Emulation.setEmulatedMedia",
      features=[{"name": "prefers-color-scheme", "value": scheme}],
    )

  def picture(self, path: pathlib.Path, whole: bool = False) -> None:
    """Writes a PNG of the window, or of the whole page."""
    found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
    path.write_bytes(base64.b64decode(found["data"]))

  def pdf(self) -> bytes:
    """The page, printed."""
    return base64.b64decode(self.call("Page.printToPDF")["data"])

  def complaints(self) -> list[str]:
    """Errors and warnings of the console, and exceptions."""
    found = []
    for event in self.events:
      parameters = event.get("params", {})
      if event.get("method") == "Runtime.consoleAPICalled":
        if parameters["type"] in ("error", "warning", "assert"):
          found.append(str(parameters["args"]))
      elif event.get("method") == "Runtime.exceptionThrown":
        found.append(str(parameters["exceptionDetails"]))
      elif event.get("method") == "Log.entryAdded":
        found.append(str(parameters["entry"]))
    return found

  def requests(self) -> list[str]:
    """Addresses of everything that was asked for."""
    return [
      event["params"]["request"]["url"]
      for event in self.events
      if event.get("method") == "Network.requestWillBeSent"
    ]

  def close(self) -> None:
    """Ends the browser."""
    try:
      self.call("Browser.close")
    except (AssertionError, OSError):
      self._process.terminate()
    self._process.wait(_SECONDS)
    os.close(self._to)
    os.close(self._from)
