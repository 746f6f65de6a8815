"""`dpr-jax fetch`: downloads the original DPR's files, or verifies them."""

import pathlib
import shlex
from collections.abc import Sequence

from dpr_jax.cli import settings_hints
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import download_list
from dpr_jax.data.download_list import FileSet


def fetch(call: Invocation) -> None:
  """Lists, downloads or verifies the files of the names given."""
  sets, base = _sets(call.words), call.flags["from"] or download_list.BASE
  if call.flags["list"]:
    _list(sets, base, with_files=bool(call.words))
    return
  if not sets or not call.flags["out"]:
    raise errors.InputError(
      "fetch needs NAME ... --out=DIR, where NAME is any of"
      f" {', '.join(download_list.BY_NAME)}; --list describes them"
    )
  folder = workdir_lib.user_path(call.flags["out"])
  if call.flags["check"]:
    _check(sets, folder, base)
  else:
    _download(sets, folder, base)
  for each in sets:
    print(f"use: {each.use.format(dir=shlex.quote(str(folder)))}")


def _sets(names: Sequence[str]) -> list[FileSet]:
  known = download_list.BY_NAME
  for name in names:
    if name not in known:
      near = settings_hints.did_you_mean(settings_hints.closest(name, known))
      raise errors.InputError(
        f"fetch {name}: unknown name{near or ': one of ' + ', '.join(known)}"
      )
  return [known[name] for name in dict.fromkeys(names)]


def _list(sets: Sequence[FileSet], base: str, with_files: bool) -> None:
  """Prints all names, or the named ones with their files."""
  from dpr_jax.data import fetched_files

  for each in sets or download_list.SETS:
    sizes = [file.size for file in each.files]
    known = sum(size or 0 for size in sizes)
    size = f"{known / 1e9:,.1f} GB" if known else "size not published"
    if known and None in sizes:
      size = f"over {size}"
    count = f"{len(sizes)} file{'s' * (len(sizes) > 1)}"
    print(f"{each.name}: {each.what} ({count}, {size}). {each.licence}.")
    if with_files:
      for file in each.files:
        print(f"  {file.name} <- {fetched_files.describe(file, base)}")


def _download(sets: Sequence[FileSet], folder: pathlib.Path, base: str) -> None:
  from dpr_jax.data import downloads, fetched_files

  for each in sets:
    print(f"{each.name}: {each.what}. Licence: {each.licence}.", flush=True)
  files = [file for each in sets for file in each.files]
  fetched_files.check_space(
    folder, sum(fetched_files.missing_bytes(file, folder) for file in files)
  )
  for number, file in enumerate(files):
    try:
      said = downloads.fetch(file, folder, base)
    except downloads.Unreachable as error:
      print("Files to bring from a machine with a network, and where to:")
      for rest in files[number:]:
        if not (folder / rest.name).exists():
          print(
            f"  {folder / rest.name} <- {fetched_files.describe(rest, base)}"
          )
      raise errors.InputError(
        f"{error}; without a network, bring the files listed above, then run"
        " the same command with --check"
      ) from error
    print(f"{folder / file.name}: {said}", flush=True)


def _check(sets: Sequence[FileSet], folder: pathlib.Path, base: str) -> None:
  from dpr_jax.data import fetched_files

  wrong, files = 0, [file for each in sets for file in each.files]
  for file in files:
    try:
      said = fetched_files.check(file, folder, base)
      print(f"{folder / file.name}: {said}", flush=True)
    except errors.DiskError:
      raise
    except errors.InputError as error:
      wrong += 1
      print(error, flush=True)
  if wrong:
    raise errors.InputError(
      f"--out={folder}: {wrong} of {len(files)} files are missing or wrong"
    )
