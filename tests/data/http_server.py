"""A server on 127.0.0.1 that answers as a test tells it to."""

import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator, Mapping


class Server:
  """Answers the n-th request with the n-th of `answers`, then with the last.

  Attributes:
    base: its address.
    answers: functions of a handler.
    asked: path and headers of every request.
  """

  def __init__(self, *answers: Callable):
    self.answers = list(answers)
    self.asked: list[tuple[str, Mapping[str, str]]] = []
    self.base = ""

  def answer(self, handler) -> None:
    self.asked.append((handler.path, handler.headers))
    number = min(len(self.asked), len(self.answers))
    self.answers[number - 1](handler)


@contextlib.contextmanager
def serving(*answers: Callable) -> Iterator[Server]:
  server = Server(*answers)

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
      with contextlib.suppress(ConnectionError):
        server.answer(self)

    def log_message(self, *_):
      pass

  httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.base = f"http://127.0.0.1:{httpd.server_port}"
  thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield server
  finally:
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def status(code: int, body: bytes = b"", **headers: str) -> Callable:
  """An answer with a status and headers, "_" in their names for "-"."""

  def answer(handler):
    handler.send_response(code)
    values = {"Content_Length": str(len(body)), "Connection": "close"} | headers
    for name, value in values.items():
      if value:
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)

  return answer


def file(
  data: bytes,
  etag: str = '"v1"',
  modified: str = "",
  cut: int | None = None,
  stall: threading.Event | None = None,
) -> Callable:
  """A file as a good server sends it: with Range and If-Range.

  Args:
    data: the file.
    etag: its ETag; "" = none.
    modified: its Last-Modified; "" = none.
    cut: position in the file at which the connection ends; None = none.
    stall: with it, nothing is sent from `cut` on until it is set.
  """

  def answer(handler):
    start, headers = 0, {"ETag": etag, "Last_Modified": modified}
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    if asked and condition in (None, etag, modified):
      start = int(asked[1])
      if start >= len(data):
        headers["Content_Range"] = f"bytes */{len(data)}"
        headers["Content_Type"] = "text/html"  # as nginx and Apache do
        status(416, b"<html>", **headers)(handler)
        return
      headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    end = len(data) if cut is None else cut
    headers["Content_Length"] = str(len(data) - start)
    status(206 if asked and start else 200, data[start:end], **headers)(handler)
    if stall:
      handler.wfile.flush()
      stall.wait(20)

  return answer


def chunked(data: bytes, ended: bool = True, **headers: str) -> Callable:
  """A file without its length, in chunks; `ended`: with the last, empty one."""

  def answer(handler):
    body = b"%x\r\n%s\r\n" % (len(data), data) + b"0\r\n\r\n" * ended
    more = {"Content_Length": "", "Transfer_Encoding": "chunked"}
    status(200, body, **more, **headers)(handler)

  return answer
