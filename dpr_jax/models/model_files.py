"""Reads and writes folders that hold a model: sizes, tokenizer, settings.

Such folders are `training/model/`, `reader/model/`,
`embeddings/passages-start/model/` and what `export` writes.  They hold
`config.json` and `tokenizer.json` in Hugging Face's format, in some cases the
weights, and `dpr_jax.json` with all other settings that determine a vector or
an answer, and the sha256 of every other file.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpr_jax import version
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib

if TYPE_CHECKING:  # imported where it is used: every command reads settings
  import tokenizers

FILE = "dpr_jax.json"
WEIGHTS = "model.safetensors"
FORMAT = 1
TOWERS, READER = "towers", "reader"  # kinds


def write_sizes(
  folder: pathlib.Path,
  sizes: Any,
  tokenizer: "tokenizers.Tokenizer",
  **extra: Any,
) -> None:
  """Writes `config.json` and `tokenizer.json`.

  Args:
    folder: an existing folder.
    sizes: the `bert.BertConfig`.
    tokenizer: tokenizer without truncation or padding.
    **extra: further keys of `config.json`.
  """
  from dpr_jax.data import special_tokens  # imports tokenizers

  workdir_lib.write_json(
    folder / "config.json",
    {"pad_token_id": special_tokens.padding(tokenizer)}
    | sizes.to_json()
    | extra,
  )
  with workdir_lib.replace_file(folder / "tokenizer.json") as temporary:
    tokenizer.save(str(temporary))


def write_weights(
  folder: pathlib.Path,
  tensors: Mapping[str, Any],
  length: int,
  token_types: bool = False,
  **extra: Any,
) -> None:
  """Writes the weights and the tokenizer's config for transformers.

  Args:
    folder: folder in which `write_sizes` has written.
    tensors: arrays by Hugging Face name.
    length: tokens of the longest text.
    token_types: see `write_tokenizer_config`.
    **extra: see `write_tokenizer_config`.
  """
  import safetensors.numpy

  with workdir_lib.replace_file(folder / WEIGHTS) as temporary:
    safetensors.numpy.save_file(
      dict(tensors), temporary, metadata={"format": "pt"}
    )
  write_tokenizer_config(folder, length, token_types, **extra)


def write_tokenizer_config(
  folder: pathlib.Path, length: int, token_types: bool = False, **extra: Any
) -> None:
  """Writes `tokenizer_config.json`.

  Args:
    folder: folder in which `write_sizes` has written.
    length: tokens of the longest text.
    token_types: the model uses token types to separate the texts of a pair.
    **extra: further keys of the file, in place of ours.
  """
  import tokenizers

  from dpr_jax.data import special_tokens

  inputs = ["input_ids", "attention_mask"]
  backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  normalizer = json.loads(backend.to_str())["normalizer"] or {}
  names = special_tokens.names(backend)
  # The class for any tokenizer.json; BERT's reads more of its own settings.
  kind = "PreTrainedTokenizerFast"
  if names["cls_token"] == "[CLS]" and isinstance(
    backend.model, tokenizers.models.WordPiece
  ):
    kind = "BertTokenizer"
  workdir_lib.write_json(
    folder / "tokenizer_config.json",
    names
    | {
      "tokenizer_class": kind,
      "do_lower_case": bool(normalizer.get("lowercase", True)),
      "model_max_length": length,
      "model_input_names": inputs + ["token_type_ids"] * token_types,
    }
    | extra,
  )


def seal(folder: pathlib.Path, kind: str, **values: Any) -> None:
  """Writes `dpr_jax.json`, the last file, which marks the folder as complete.

  Args:
    folder: folder with all other files.
    kind: `TOWERS` or `READER`.
    **values: settings to store.
  """
  files = {
    path.relative_to(folder).as_posix(): workdir_lib.fingerprint_file(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path != folder / FILE
  }
  record = {"format": FORMAT, "kind": kind, **values, "files": files}
  workdir_lib.write_record(folder / FILE, record)


def is_sealed(folder: pathlib.Path) -> bool:
  """True where the folder has a `dpr_jax.json`, valid or not."""
  return (folder / FILE).is_file()


def is_whole(folder: pathlib.Path, kind: str, values: dict[str, Any]) -> bool:
  """True where a folder is sealed with these values and undamaged."""
  if not is_sealed(folder):
    return False
  try:
    record = read(folder, kind, "")
    check(folder, record, "", tuple(record["files"]))
  except errors.InputError:
    return False
  plain = json.loads(json.dumps(values))
  return all(record.get(key) == value for key, value in plain.items())


def read(folder: pathlib.Path, kind: str, fix: str) -> dict[str, Any]:
  """Content of `dpr_jax.json`; the other files are not checked.

  Args:
    folder: a sealed folder.
    kind: expected kind, `TOWERS` or `READER`.
    fix: what to do about damage, for error messages.

  Raises:
    InputError: the file is damaged, of a later version, or of another kind.
  """
  path = folder / FILE
  try:
    record = workdir_lib.read_record(path)
    form, stored_kind = record["format"], record["kind"]
    record["files"].items()
  except errors.InputError as error:
    raise errors.InputError(f"{error}; {fix}") from error
  except (AttributeError, KeyError) as error:
    raise errors.InputError(f"{path} is damaged: {error}; {fix}") from error
  if form != FORMAT or stored_kind != kind:
    raise errors.InputError(
      f"{path} describes {stored_kind} in format {form}; dpr-jax"
      f" {version.__version__} expects {kind} in format {FORMAT} here; {fix}"
    )
  return record


def check(
  folder: pathlib.Path,
  record: Mapping[str, Any],
  fix: str,
  needed: Sequence[str] = ("config.json", "tokenizer.json"),
) -> None:
  """Compares files with their sha256, before they are used.

  Args:
    folder: a sealed folder.
    record: content of its `dpr_jax.json`.
    fix: what to do about damage, for error messages.
    needed: names of the files to compare.

  Raises:
    InputError: a file is missing or has changed; the message names it.
  """
  for name in needed:
    if name == FILE:  # exports of older versions list it, as it was before
      continue
    path, wanted = folder / name, record["files"].get(name)
    if not path.is_file():
      raise errors.InputError(f"{path} is missing: {fix}")
    sha256 = workdir_lib.fingerprint_file(path)
    if sha256 != wanted:
      raise errors.InputError(
        f"{path} is damaged or was changed: its sha256 is {sha256}, {FILE}"
        f" records {wanted}; {fix}"
      )


def load_tokenizer(folder: pathlib.Path) -> "tokenizers.Tokenizer":
  """The tokenizer that `write_sizes` wrote."""
  import tokenizers

  return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
