"""Downloads from a local server that cuts, stalls, lies and changes its mind.

After each, the right bytes are under the final name, or nothing is.
"""

import email.utils
import gzip
import hashlib
import json
import socket
import threading
import time

import pytest
import requests

from dpr_jax.core import errors
from dpr_jax.data import downloads, http_answers
from dpr_jax.data.download_list import RemoteFile
from tests.data.http_server import chunked, file, serving, status
from tests.data.remote_files import (
  CUT,
  DATA,
  KNOWN,
  MD5,
  OTHER,
  QUICK,
  UNKNOWN,
  fetch,
  leave_part,
  names,
  ranges,
)


@pytest.fixture
def waits(monkeypatch):
  """Seconds that were waited before attempts, without waiting."""
  waited = []
  monkeypatch.setattr(downloads.time, "sleep", waited.append)
  return waited


def test_whole_file(tmp_path):
  with serving(file(DATA)) as server:
    said = fetch(KNOWN, tmp_path, server)
    again = fetch(KNOWN, tmp_path, server)
  assert said == "downloaded, 251,000 bytes, md5 as published"
  assert again == "was there, 251,000 bytes, md5 as published"
  assert (tmp_path / "x.bin").read_bytes() == DATA
  assert names(tmp_path) == {"x.bin"}
  [(path, headers)] = server.asked
  assert (path, headers["Accept-Encoding"]) == ("/a/x.bin", "identity")


def test_goes_to_its_own_folder_and_empty_files_are_files(tmp_path):
  remote = RemoteFile("a/x", "b/c/y", 0, f"md5:{hashlib.md5(b'').hexdigest()}")
  with serving(file(b"")) as server:
    assert fetch(remote, tmp_path, server).startswith("downloaded, 0 bytes")
  assert (tmp_path / "b" / "c" / "y").read_bytes() == b""


def test_continues_where_the_connection_was_cut(tmp_path, waits):
  with serving(file(DATA, cut=CUT), file(DATA)) as server:
    fetch(KNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA
  assert ranges(server) == [(None, None), ("bytes=150000-", '"v1"')]
  assert len(waits) == 1


def test_continues_after_silence(tmp_path, waits):
  woken = threading.Event()
  with serving(file(DATA, cut=1 << 17, stall=woken), file(DATA)) as server:
    began = time.monotonic()
    fetch(KNOWN, tmp_path, server)
    assert 0.4 < time.monotonic() - began < 10
    woken.set()
  assert (tmp_path / "x.bin").read_bytes() == DATA
  assert ranges(server)[1] == ("bytes=131072-", '"v1"')


def test_a_later_call_continues(tmp_path, waits):
  with serving(file(DATA, cut=CUT)) as server:
    leave_part(tmp_path, server)
    assert names(tmp_path) == {"x.bin.part", "x.bin.part.json"}
    server.answers = [file(DATA)]
    fetch(UNKNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA
  assert ranges(server) == [("bytes=150000-", '"v1"')]
  assert names(tmp_path) == {"x.bin", "x.bin.fetched.json"}


def test_waits_double_up_to_a_limit_and_end(tmp_path, waits):
  patience = downloads.Patience(attempts=5, first_wait=3.0, longest_wait=10.0)
  with serving(status(500)) as server:
    with pytest.raises(errors.InputError, match=r"HTTP 500 .*\(5 attempts\)$"):
      downloads.fetch(KNOWN, tmp_path, server.base, patience)
  assert waits == [3, 6, 10, 10]
  assert names(tmp_path) == set()


def test_progress_of_a_megabyte_renews_the_attempts(tmp_path, waits):
  data = DATA * 12
  remote = RemoteFile("x.bin", "", len(data))
  cuts = [file(data, cut=n * 1_000_000) for n in (1, 2, 3)]
  ill = [status(502)] * 3
  answers = [cuts[0], *ill[:2], cuts[1], *ill[:2], cuts[2], *ill[:2]]
  with serving(*answers, file(data)) as server:
    fetch(remote, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == data
  assert len(server.asked) == 10


def test_retry_after_in_seconds_and_as_a_date(tmp_path, waits):
  then = email.utils.formatdate(time.time() + 30, usegmt=True)
  busy = [status(503, Retry_After="7"), status(429, Retry_After=then)]
  ill = status(503, Retry_After="soon")
  with serving(*busy, ill, file(DATA)) as server:
    fetch(KNOWN, tmp_path, server)
  assert waits[0] == 7
  assert 20 < waits[1] <= 30
  assert waits[2] == 0


def test_retry_after_of_an_hour_is_said(tmp_path, waits):
  with serving(status(503, Retry_After="3600")) as server:
    with pytest.raises(errors.InputError, match="come back in 1:00:00"):
      fetch(KNOWN, tmp_path, server)
  assert (len(server.asked), waits) == (1, [])


def test_416_for_a_part_that_is_the_whole_file(tmp_path, waits):
  with serving(file(DATA, cut=CUT)) as server:
    leave_part(tmp_path, server)
    server.answers = [file(DATA[:CUT])]
    note = json.loads((tmp_path / "x.bin.part.json").read_text())
    assert note["size"] == len(DATA)
    fetch(UNKNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA[:CUT]
  assert len(server.asked) == 1


def test_416_for_a_part_that_is_too_long(tmp_path, waits):
  with serving(file(DATA, cut=CUT)) as server:
    leave_part(tmp_path, server)
    server.answers = [file(DATA[:1000])]
    fetch(UNKNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA[:1000]
  assert ranges(server) == [("bytes=150000-", '"v1"'), (None, None)]


def test_a_file_that_changes_meanwhile_begins_again(tmp_path, waits):
  changed = file(OTHER, etag='"v2"')
  with serving(file(DATA, cut=CUT), changed) as server:
    fetch(UNKNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == OTHER
  assert ranges(server) == [(None, None), ("bytes=150000-", '"v1"')]
  record = json.loads((tmp_path / "x.bin.fetched.json").read_text())
  assert record["etag"] == '"v2"'


def part_of(data: bytes, start: int, total: int, **headers: str):
  """A 206 that ignores what was asked for."""
  value = f"bytes {start}-{start + len(data) - 1}/{total}"
  return status(206, data, **{"Content_Range": value, "ETag": '"v1"'} | headers)


@pytest.mark.parametrize(
  "wrong",
  [
    part_of(OTHER[CUT:], CUT, len(DATA), ETag='"v2"'),
    part_of(DATA[CUT + 1 :], CUT + 1, len(DATA)),
    part_of(DATA, 0, len(DATA)),
    part_of(DATA[CUT:], CUT, len(DATA) + 1),
    part_of(DATA[CUT:], CUT, 0, Content_Range="bytes 150000-"),
    part_of(DATA[CUT:], CUT, 0, Content_Range=""),
    file(DATA, etag=""),
  ],
  ids=["etag", "late", "early", "total", "half a header", "none", "no range"],
)
def test_a_wrong_206_begins_again(tmp_path, waits, wrong):
  """Also where the server sends the whole file instead."""
  with serving(file(DATA, cut=CUT), wrong, file(DATA)) as server:
    fetch(KNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA
  assert ranges(server)[1] == ("bytes=150000-", '"v1"')
  assert ranges(server)[2:] in ([], [(None, None)])


def test_206_that_was_not_asked_for(tmp_path, waits):
  with serving(part_of(DATA, 0, len(DATA)), file(DATA)) as server:
    fetch(KNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA
  assert len(waits) == 1


def test_a_short_206_is_continued(tmp_path, waits):
  short = part_of(DATA[CUT : CUT + 9], CUT, len(DATA))
  with serving(file(DATA, cut=CUT), short, file(DATA)) as server:
    fetch(KNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA
  assert ranges(server)[2] == ("bytes=150009-", '"v1"')


@pytest.mark.parametrize(
  ("etag", "modified", "expected"),
  [
    ("", "Sun, 29 Nov 2026 10:00:00 GMT", "Sun, 29 Nov 2026 10:00:00 GMT"),
    (
      'W/"v1"',
      "Sun, 29 Nov 2026 10:00:00 GMT",
      "Sun, 29 Nov 2026 10:00:00 GMT",
    ),
    ('W/"v1"', "", None),
    ("", "", None),
  ],
)
def test_only_what_promises_equal_bytes_is_a_validator(
  tmp_path, waits, etag, modified, expected
):
  """Without one the second request asks for the whole file."""
  with serving(
    file(DATA, etag, modified, cut=CUT), file(DATA, etag, modified)
  ) as server:
    fetch(KNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA
  asked = ("bytes=150000-", expected) if expected else (None, None)
  assert ranges(server)[1] == asked


def test_another_address_begins_again(tmp_path, waits):
  with serving(file(DATA, cut=CUT)) as server:
    leave_part(tmp_path, server)
  with serving(file(DATA)) as mirror:
    fetch(UNKNOWN, tmp_path, mirror)
  assert ranges(mirror) == [(None, None)]
  assert (tmp_path / "x.bin").read_bytes() == DATA


@pytest.mark.parametrize(
  ("answer", "said"),
  [
    (file(OTHER), "x.bin has md5 .*, and the published one is " + MD5),
    (file(DATA + b"x"), "251,001 bytes, and the published size is 251,000"),
    (file(DATA[:-1]), "250,999 bytes, and the published size is 251,000"),
    (chunked(DATA + b"x"), "sends more than 251,000 bytes"),
    (status(404), "answered HTTP 404 Not Found"),
    (status(403), "answered HTTP 403 Forbidden"),
    (
      status(200, DATA, Content_Type="text/html; charset=utf-8"),
      "a web page instead of the file",
    ),
  ],
)
def test_another_file_is_refused_at_once(tmp_path, waits, answer, said):
  with serving(answer) as server:
    with pytest.raises(errors.InputError, match=said):
      fetch(KNOWN, tmp_path, server)
  assert names(tmp_path) == set()
  assert (len(server.asked), waits) == (1, [])


def test_a_damaged_part_of_an_earlier_call(tmp_path, waits):
  """The hash is that of the whole file, so it is found, and mended once."""
  with serving(file(DATA, cut=CUT)) as server:
    leave_part(tmp_path, server)
    (tmp_path / "x.bin.part").write_bytes(DATA[: CUT - 1] + b"?")
    server.answers = [file(DATA)]
    fetch(KNOWN, tmp_path, server)
    assert ranges(server) == [("bytes=150000-", '"v1"'), (None, None)]
  assert (tmp_path / "x.bin").read_bytes() == DATA


def test_wrong_bytes_twice_after_a_damaged_part(tmp_path, waits):
  with serving(file(DATA, cut=CUT)) as server:
    leave_part(tmp_path, server)
    server.answers = [file(OTHER)]
    with pytest.raises(errors.InputError, match="nothing of it is kept"):
      fetch(KNOWN, tmp_path, server)
    assert len(server.asked) == 2
  assert names(tmp_path) == set()


def test_chunks_without_a_length(tmp_path, waits):
  """Their end is marked, so a cut is noticed, even without a size."""
  etag = {"ETag": '"v1"'}
  with serving(chunked(DATA[:CUT], ended=False, **etag), file(DATA)) as server:
    fetch(UNKNOWN, tmp_path, server)
    # Of a broken chunk, up to 65,535 bytes are read again.
    assert ranges(server)[1] == ("bytes=131072-", '"v1"')
    assert (tmp_path / "x.bin").read_bytes() == DATA
    (tmp_path / "x.bin").unlink()
    server.answers = [chunked(DATA, **etag)]
    fetch(UNKNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA


def test_neither_length_nor_chunks(tmp_path, waits):
  """Then only a published size can tell whether all of it has arrived."""
  with serving(status(200, DATA, Content_Length="")) as server:
    with pytest.raises(errors.InputError, match="does not say how long"):
      fetch(UNKNOWN, tmp_path, server)
    assert names(tmp_path) == set()
    fetch(KNOWN, tmp_path, server)
  assert (tmp_path / "x.bin").read_bytes() == DATA


def test_compressed_on_the_way(tmp_path, waits):
  body = gzip.compress(DATA)
  answer = status(200, body, Content_Encoding="gzip")
  with serving(answer) as server:
    with pytest.raises(errors.InputError, match="Content-Encoding: gzip"):
      fetch(UNKNOWN, tmp_path, server)
    assert names(tmp_path) == set()
    # The label of a .gz: its bytes are kept as they are.
    fetch(RemoteFile("x.json.gz"), tmp_path, server)
    assert (tmp_path / "x.json.gz").read_bytes() == body
    server.answers = [status(200, gzip.compress(body), Content_Encoding="gzip")]
    with pytest.raises(errors.InputError, match="is compressed twice"):
      fetch(RemoteFile("y.json.gz"), tmp_path, server)
    server.answers = [status(200, body[:-9])]
    with pytest.raises(errors.InputError, match="y.json.gz is not whole"):
      fetch(RemoteFile("y.json.gz"), tmp_path, server)
  assert names(tmp_path) == {"x.json.gz", "x.json.gz.fetched.json"}


def test_redirects_keep_the_range(tmp_path, waits):
  def moved(handler):
    if handler.path == "/a/x.bin":
      status(302, Location="/b")(handler)
    else:
      answer = file(DATA) if "Range" in handler.headers else file(DATA, cut=CUT)
      answer(handler)

  with serving(moved) as server:
    fetch(KNOWN, tmp_path, server)
    asked = [path for path, _ in server.asked]
    assert asked == ["/a/x.bin", "/b", "/a/x.bin", "/b"]
    assert ranges(server)[3] == ("bytes=150000-", '"v1"')
  assert (tmp_path / "x.bin").read_bytes() == DATA
  with serving(status(302, Location="/a/x.bin")) as server:
    with pytest.raises(errors.InputError, match="Exceeded 5 redirects"):
      fetch(KNOWN, tmp_path / "b", server)


def test_redirects_from_https_to_http_are_refused():
  addresses = ["https://a/x", "http://b/x"]
  first, last = requests.Response(), requests.Response()
  first.url, last.url = addresses
  last.status_code, last.history = 200, [first]
  with pytest.raises(errors.InputError, match="http://b/x, which is not https"):
    http_answers.check(last, KNOWN, 60.0)
  first.url = "http://a/x"
  http_answers.check(last, KNOWN, 60.0)


def test_a_server_that_is_not_there(tmp_path, waits):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(downloads.Unreachable, match=r"refused.*\(3 attempts\)"):
      downloads.fetch(KNOWN, tmp_path, base, QUICK)
  assert (waits, names(tmp_path)) == ([0, 0], set())


@pytest.mark.parametrize("base", ["ftp://127.0.0.1", "127.0.0.1", "http://"])
def test_an_address_that_is_none(tmp_path, base):
  with pytest.raises(errors.InputError, match="a/x.bin: "):
    downloads.fetch(KNOWN, tmp_path, base, QUICK)
