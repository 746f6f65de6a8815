"""Stores the corpus as token ids, tokenized once, in `tokens/passages/`.

Input: the corpus and a tokenizer.  Output: memory-mapped blocks of ids
(`ids-*.npy`, uint16 if the vocabulary is small enough) with the end of each
passage (`ends-*.npy`), and a manifest.  Embedding and training of all models
with the same tokenizer and text format read passages from here; a model with a
smaller passage length gets the passages cut to it.

If the corpus changes, only new and changed passages are tokenized; the ids of
the others are copied from the earlier store, which is found by the digests of
its rows (`digests-*.npy`, see `passage_digests`).
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, UInt, UInt64

from dpr_jax.core import (
  earlier_output,
  errors,
  manifests,
  multiprocess,
  sharded_output,
)
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  datasets,
  passage_digests,
  special_tokens,
  token_blocks,
  tokenization,
)

STAGE = "tokens"
BLOCK = 32_768  # passages
_MOST_UNKNOWN = 0.05  # share of unknown tokens in texts that is a warning


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """Random access to the token ids of a corpus.

  Attributes:
    folder: `tokens/passages`.
    manifest: manifest of the store.
    limit: maximum tokens of a passage; longer ones are cut as in tokenization.
  """

  folder: pathlib.Path
  manifest: dict[str, Any]
  limit: int

  def __len__(self) -> int:
    return self.manifest["count"]

  @functools.cached_property
  def _blocks(self) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
      tuple(
        np.load(self.folder / token_blocks.name(kind, number), mmap_mode="r")
        for kind in ("ids", "ends")
      )
      for number in range(len(self.manifest["parts"]))
    ]

  def __reduce__(self):
    return TokenStore, (self.folder, self.manifest, self.limit)

  def lengths(self, first: int, last: int) -> Int[np.ndarray, " rows"]:
    """Number of tokens of the passages from row `first` to `last` - 1."""
    pieces = []
    while first < last:
      number, start = divmod(first, self.manifest["block"])
      ends = self._blocks[number][1][start : start + last - first + 1]
      pieces.append(np.diff(ends))
      first += len(ends) - 1
    lengths = np.concatenate(pieces) if pieces else np.zeros(0)
    return np.minimum(lengths, self.limit).astype(np.int64)

  def ids(self, row: int) -> UInt[np.ndarray, " tokens"]:
    """Token ids of one passage."""
    number, place = divmod(int(row), self.manifest["block"])
    ids, ends = self._blocks[number]
    tokens = ids[ends[place] : ends[place + 1]]
    return cut(tokens, self.limit, self.manifest["separator"])

  def digests(self) -> UInt64[np.ndarray, " rows"]:
    """Digests of the passages, see `passage_digests`.

    Raises:
      OSError: an older version made the store.
    """
    numbers = range(len(self.manifest["parts"]))
    names = (
      self.folder / token_blocks.name(token_blocks.DIGESTS, number)
      for number in numbers
    )
    return np.concatenate([np.load(name) for name in names])

  def histogram(self) -> Int[np.ndarray, " lengths"]:
    """Number of passages of each length from 0 to `limit`."""
    counts = np.zeros(self.limit + 1, np.int64)
    for part in self.manifest["parts"]:
      for length, count in part["lengths"].items():
        counts[min(int(length), self.limit)] += count
    return counts


def make(
  where: workdir_lib.Workdir,
  passages: datasets.PassageTable,
  tokenizer: tokenization.TextTokenizer,
  *,
  overwrite: bool = False,
  process: int = 0,
  processes: int = 1,
  workers: int = 0,
) -> TokenStore:
  """Opens the token store of a workdir; makes or completes it if necessary.

  The store is replaced for another tokenizer or corpus, or longer passages.

  Args:
    where: the workdir; the store is its `tokens/passages`.
    passages: the corpus of the workdir.
    tokenizer: tokenizer and text format of the passages.
    overwrite: make the store even if it is complete.
    process: index of this process; blocks are dealt to all processes.
    processes: number of processes.
    workers: child processes that tokenize; 0 = one per CPU, and none for a
      small corpus.
  """
  stage = workdir_lib.Stage(
    STAGE,
    where.tokens,
    {"block": BLOCK, "passage_length": tokenizer.passage_length},
    workdir_lib.dataset_inputs(where, "passages")
    | {"tokenizer": fingerprint(tokenizer)},
  )
  # Before anything that another process may change: all processes ask the first
  # one equally often, or they would read each other's next answers.
  multiprocess.first_alone(lambda: _set_aside(stage, overwrite))
  found = find_stored(stage, ("passage_length",))
  if found is not None and not overwrite:
    if process == 0:
      earlier_output.discard(stage)  # if the last run was killed before it did
    return TokenStore(stage.folder, found, tokenizer.passage_length)
  blocks = sharded_output.Parts(
    stage,
    -(-len(passages) // BLOCK),
    tuple(f"{kind}-*.npy" for kind in token_blocks.KINDS),
    process,
    processes,
  )
  blocks.begin(overwrite, replace=True)
  earlier = _earlier(stage, tokenizer)
  work = token_blocks.Work(
    stage.folder,
    passages,
    tokenizer,
    BLOCK,
    earlier,
    passage_digests.load(where),
  )
  started = time.monotonic()
  done, copied = token_blocks.make(blocks, work, workers)
  seconds = time.monotonic() - started
  records = blocks.collect()
  if records is not None:
    blocks.close(
      records,
      {"passages": len(passages), "tokenized_in_this_run": done},
      count=len(passages),
      block=BLOCK,
      tokens=sum(record["tokens"] for record in records),
      separator=tokenizer.separator,
      unknown_share=_unknown_share(records),
      passages_per_second=round(done / seconds, 1),
    )
    earlier_output.discard(stage)
  logging.info(
    "tokens: %d passages in %.0f s, %.0f passages/s%s",
    done,
    seconds,
    done / seconds,
    f"; {copied} are those of the earlier corpus" if copied else "",
  )
  manifest = workdir_lib.read_record(stage.manifest)
  unknown = special_tokens.unknown(tokenizer.backend)
  if unknown is not None:
    name = tokenizer.backend.id_to_token(unknown)
    _log_unknown(manifest["unknown_share"], name)
  return TokenStore(stage.folder, manifest, tokenizer.passage_length)


def _unknown_share(parts: Sequence[Mapping[str, Any]]) -> float:
  """Share of unknown tokens in the texts, over all parts."""
  # Parts that an older version wrote have no counts.
  counted = [part for part in parts if "unknown" in part]
  tokens = sum(part["text_tokens"] for part in counted)
  unknown = sum(part["unknown"] for part in counted)
  return round(unknown / tokens, 6) if tokens else 0.0


def _log_unknown(share: float, name: str) -> None:
  logging.log(
    logging.WARNING if share > _MOST_UNKNOWN else logging.INFO,
    "tokens: %.2f %% of the passages' tokens are %s%s",
    100 * share,
    name,
    ": the vocabulary of config.model.checkpoint lacks these words; is it a"
    " model for the language of the corpus?"
    if share > _MOST_UNKNOWN
    else "",
  )


def fingerprint(tokenizer: tokenization.TextTokenizer) -> str:
  """sha256 of all that determines a passage's ids, except the length."""
  settings = tokenizer.text_format()
  return workdir_lib.fingerprint(
    [
      tokenizer.backend.to_str(),
      settings["title"],
      settings["passage_prefix"],
    ]
  )


def find_stored(
  stage: workdir_lib.Stage, at_least: Sequence[str]
) -> dict[str, Any] | None:
  """The manifest of a store that is complete and can be used, or None.

  Args:
    stage: the store as it is needed.
    at_least: settings of the stage that may be larger in the store.
  """
  if not stage.manifest.exists():
    return None
  try:
    manifest = workdir_lib.read_manifest(stage.folder, STAGE)
    stored = {name: int(manifest["config"][name]) for name in at_least}
    parts_of_it = len(manifest["parts"])
  except (errors.InputError, KeyError, TypeError, ValueError):
    return None  # `Parts.begin` logs the reason, and makes it again
  if manifest["inputs"] != stage.inputs or any(
    stored[name] < stage.config[name] for name in at_least
  ):
    return None
  there = dataclasses.replace(stage, config={**stage.config, **stored})
  whole = sharded_output.Parts(there, parts_of_it, ()).begin()
  return manifest if whole else None


def cut(
  tokens: UInt[np.ndarray, " tokens"], limit: int, separator: int
) -> UInt[np.ndarray, " kept"]:
  """Cuts a text as the tokenizer does: its last token is a separator."""
  if len(tokens) > limit:
    tokens = tokens[:limit].copy()
    tokens[-1] = separator
  return tokens


def _set_aside(stage: workdir_lib.Stage, overwrite: bool) -> None:
  """Moves the store of an earlier corpus aside, if it can be reused."""
  if overwrite:
    earlier_output.discard(stage)
    return
  earlier_output.restore_target(stage)
  manifest = _reusable(stage, stage.folder)
  if manifest and earlier_output.is_of_another_corpus(stage, manifest):
    earlier_output.set_aside(stage, manifest)


def _reusable(
  stage: workdir_lib.Stage, folder: pathlib.Path
) -> dict[str, Any] | None:
  """The manifest of a store with the same ids, and with digests; or None."""
  try:
    manifest = workdir_lib.read_manifest(folder, STAGE)
  except errors.InputError:  # missing, or damaged: of no use
    return None
  digests = {
    token_blocks.name(token_blocks.DIGESTS, number)
    for number in range(len(manifest.get("parts", ())))
  }
  if (
    digests
    and digests <= manifest["files"].keys()
    and manifest["inputs"].get("tokenizer") == stage.inputs["tokenizer"]
    and manifest["config"]["passage_length"] >= stage.config["passage_length"]
  ):
    return manifest
  return None


def _earlier(
  stage: workdir_lib.Stage, tokenizer: tokenization.TextTokenizer
) -> TokenStore | None:
  """The store that was set aside; None, with a warning, if it is damaged."""
  folder = earlier_output.folder_of(stage)
  manifest = _reusable(stage, folder)
  if manifest is None:
    return None
  wrong = manifests.damaged_files(folder, manifest["files"])
  for name, what in wrong.items():
    logging.warning("tokens: not reused: %s %s", folder / name, what)
  limit = tokenizer.passage_length
  return None if wrong else TokenStore(folder, manifest, limit)
