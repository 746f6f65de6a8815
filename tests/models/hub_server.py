"""Stands for the Hugging Face hub on 127.0.0.1: keeps what is uploaded.

It answers the requests of `huggingface_hub` when it creates a repository and
commits files: small ones in the commit itself, `.safetensors` and `.onnx` by
Git LFS.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator


class Hub:
  """What has been uploaded, and what the server is to do.

  Attributes:
    base: its address.
    files: bytes of the committed files by path.
    created: content of the requests that create a repository.
    tokens: values of the header Authorization.
    refusal: status with which every request is refused; 0 = none is.
  """

  def __init__(self):
    self.base = ""
    self.files: dict[str, bytes] = {}
    self.created: list[dict] = []
    self.tokens: set[str] = set()
    self.refusal = 0
    self._objects: dict[str, bytes] = {}

  def answer(self, method: str, path: str, body: bytes) -> dict | None:
    """The JSON of an answer; None = the server does not know the request."""
    if method == "PUT" and path.startswith("/objects/"):
      sha256 = path.removeprefix("/objects/")
      assert hashlib.sha256(body).hexdigest() == sha256
      self._objects[sha256] = body
      return {}
    if path == "/api/repos/create":
      self.created.append(json.loads(body))
      return {"url": f"{self.base}/me/model", "id": "me/model"}
    if path == "/api/validate-yaml":
      return {"errors": [], "warnings": []}
    if "/preupload/" in path:
      return {"files": [self._mode(file) for file in json.loads(body)["files"]]}
    if path.endswith("/info/lfs/objects/batch"):
      return {"objects": [self._place(x) for x in json.loads(body)["objects"]]}
    if "/commit/" in path and method == "POST":
      self._commit(body)
      return {"commitUrl": f"{self.base}/me/model/commit/1", "commitOid": "1"}
    if path.startswith("/api/models/me/model"):
      return {"id": "me/model", "sha": "0" * 40, "siblings": []}
    return None

  def _mode(self, file: dict) -> dict:
    large = file["path"].endswith((".safetensors", ".onnx"))
    mode = "lfs" if large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

  def _place(self, item: dict) -> dict:
    href = f"{self.base}/objects/{item['oid']}"
    return item | {"actions": {"upload": {"href": href}}}

  def _commit(self, body: bytes) -> None:
    for line in body.splitlines():
      record = json.loads(line)
      value = record["value"]
      if record["key"] == "file":
        assert value["encoding"] == "base64"
        self.files[value["path"]] = base64.b64decode(value["content"])
      elif record["key"] == "lfsFile":
        self.files[value["path"]] = self._objects[value["oid"]]
      else:
        assert record["key"] == "header"


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
  hub = Hub()

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self):
      path = self.path.partition("?")[0]
      if self.command == "POST" and path != "/api/validate-yaml":
        hub.tokens.add(self.headers.get("Authorization", ""))
      length = int(self.headers.get("Content-Length") or 0)
      body = self.rfile.read(length)
      if "chunked" in self.headers.get("Transfer-Encoding", ""):
        while size := int(self.rfile.readline(), 16):
          body += self.rfile.read(size)
          self.rfile.readline()
        self.rfile.readline()
      answer = None if hub.refusal else hub.answer(self.command, path, body)
      text = json.dumps(answer or {}).encode()
      status = 200 if answer is not None else hub.refusal or 404
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(text)))
      self.end_headers()
      self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_HEAD = reply

    def log_message(self, *_):
      pass

  httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  hub.base = f"http://127.0.0.1:{httpd.server_port}"
  thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield hub
  finally:
    httpd.shutdown()
    httpd.server_close()
    thread.join()
