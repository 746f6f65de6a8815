"""Files of a local server, and calls that fetch them, for tests."""

import hashlib
import pathlib

import pytest

from dpr_jax.core import errors
from dpr_jax.data import downloads
from dpr_jax.data.download_list import RemoteFile
from tests.data import http_server

DATA = bytes(range(251)) * 1000
OTHER = DATA[::-1]
MD5 = hashlib.md5(DATA).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()
KNOWN = RemoteFile("a/x.bin", "", len(DATA), f"md5:{MD5}")
UNKNOWN = RemoteFile("a/x.bin")
CUT = 150_000
QUICK = downloads.Patience(
  stall=0.5, attempts=4, first_wait=0.0, longest_asked=60.0
)


def fetch(remote, folder, server) -> str:
  return downloads.fetch(remote, folder, server.base, QUICK)


def names(folder: pathlib.Path) -> set[str]:
  """Files in a folder, without locks."""
  return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")}


def ranges(server: http_server.Server) -> list[tuple[str | None, str | None]]:
  return [(h.get("Range"), h.get("If-Range")) for _, h in server.asked]


def leave_part(folder: pathlib.Path, server) -> None:
  """A part of `CUT` bytes of an earlier call."""
  with pytest.raises(errors.InputError, match="are kept, run it again later"):
    fetch(UNKNOWN, folder, server)
  assert (folder / "x.bin.part").read_bytes() == DATA[:CUT]
  server.asked.clear()
