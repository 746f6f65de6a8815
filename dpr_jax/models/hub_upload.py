"""Uploads an exported folder to a repository of the Hugging Face hub."""

import pathlib
import re
from typing import Any

import huggingface_hub
import huggingface_hub.errors
from absl import logging

from dpr_jax import version
from dpr_jax.core import errors

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_PREFIX = "hf:"
# The bases of the client's own error: OSError, and the HTTP
# library's, which is httpx or its successor, as the client's version has it.
_HTTP_ERRORS = huggingface_hub.errors.HfHubHTTPError.__bases__


def repository(to: str | None) -> str:
  """OWNER/NAME of `--to=hf:OWNER/NAME`; `InputError` if it is none."""
  name = (to or "").removeprefix(_PREFIX)
  valid = (to or "").startswith(_PREFIX) and _NAME.fullmatch(name)
  if not valid or ".." in name or "--" in name:
    raise errors.InputError(
      f"--to={to or ''}: must be hf:OWNER/NAME, a repository of the Hugging"
      " Face hub"
    )
  return name


def token() -> str:
  """The user's token for the hub; `InputError` if there is none."""
  found = huggingface_hub.get_token()
  if not found:
    raise errors.InputError(
      "publish needs a token of the Hugging Face hub with the right to write:"
      " set HF_TOKEN, or run `hf auth login`"
    )
  return found


def files(folder: pathlib.Path) -> dict[str, int]:
  """Sizes in bytes of all files, by path relative to the folder."""
  return {
    path.relative_to(folder).as_posix(): path.stat().st_size
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def upload(folder: pathlib.Path, name: str, *, private: bool) -> str:
  """Creates the repository if necessary, and adds one commit with all files.

  Other files that are in the repository stay there.

  Args:
    folder: a finished export.
    name: OWNER/NAME.
    private: create it as a private repository; one that exists stays as it is.

  Returns:
    Address of the commit.

  Raises:
    InputError: the hub cannot be reached, or refuses.
  """
  api = huggingface_hub.HfApi(
    token=token(), library_name="dpr-jax", library_version=version.__version__
  )
  logging.info("publish: uploading to %s at %s", name, api.endpoint)
  try:
    api.create_repo(name, private=private, exist_ok=True)
    commit: Any = api.upload_folder(
      repo_id=name,
      folder_path=folder,
      commit_message=f"Export of dpr-jax {version.__version__}",
    )
  except (ValueError, RuntimeError, *_HTTP_ERRORS) as error:
    reasons = [error, *([error.__cause__] if error.__cause__ else [])]
    said = " ".join(" ".join(map(str, reasons)).split())[:400]
    raise errors.InputError(
      f"publish --to=hf:{name}: {api.endpoint} cannot be used: {said}; check"
      " the name, the token's rights and the connection"
    ) from error
  return commit.commit_url
