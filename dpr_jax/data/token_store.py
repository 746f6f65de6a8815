"""Stores the corpus as token ids, tokenized once, in `tokens/passages/`.

Input: the corpus and a tokenizer.  Output: memory-mapped blocks of ids
(`ids-*.npy`, uint16 if the vocabulary is small enough) with the end of each
passage (`ends-*.npy`), and a manifest.  Embedding and training of all models
with the same tokenizer and text format read passages from here; a model with a
smaller passage length gets the passages cut to it.
"""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int, UInt

from dpr_jax.core import (
  child_processes,
  errors,
  memory,
  progress,
  sharded_output,
)
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import datasets, special_tokens, tokenization

STAGE = "tokens"
BLOCK = 32_768  # passages
_PIECE = 1024  # passages tokenized at once
# Passages that one process tokenizes in the seconds that another takes to
# start: with fewer, a further process is not worth it.
_WORTH_A_PROCESS = 20_000
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
        np.load(self.folder / _name(kind, number), mmap_mode="r")
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
  found = find_stored(stage, ("passage_length",))
  if found is not None and not overwrite:
    return TokenStore(stage.folder, found, tokenizer.passage_length)
  blocks = sharded_output.Parts(
    stage,
    -(-len(passages) // BLOCK),
    ("ids-*.npy", "ends-*.npy"),
    process,
    processes,
  )
  blocks.begin(overwrite, replace=True)
  started = time.monotonic()
  done = _tokenize(blocks, passages, tokenizer, workers)
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
  logging.info(
    "tokens: %d passages in %.0f s, %.0f passages/s",
    done,
    seconds,
    done / seconds,
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


def id_dtype(tokenizer: tokenization.TextTokenizer) -> type[np.unsignedinteger]:
  """The smallest dtype of token ids."""
  small = tokenizer.backend.get_vocab_size() <= 1 << 16
  return np.uint16 if small else np.uint32


def _name(kind: str, number: int) -> str:
  return f"{kind}-{number:05d}.npy"


def _tokenize(
  blocks: sharded_output.Parts,
  passages: datasets.PassageTable,
  tokenizer: tokenization.TextTokenizer,
  workers: int,
) -> int:
  """Makes the missing blocks; returns the number of passages in them."""
  missing = [number for number in blocks.mine if blocks.find(number) is None]
  rows = {
    number: range(number * BLOCK, min((number + 1) * BLOCK, len(passages)))
    for number in missing
  }
  total = sum(map(len, rows.values()))
  if not workers:
    workers = min(
      memory.usable_cpus(), len(missing), 1 + total // _WORTH_A_PROCESS
    )
  folder = blocks.stage.folder
  with progress.Progress(total, "tokenize", "passages") as bar:
    if workers <= 1:
      for number in missing:
        record = _make_block(folder, number, rows[number], passages, tokenizer)
        blocks.finish(number, **record)
        bar.update(len(rows[number]))
      return total
    settings = tokenizer.text_format()
    start = (passages.folder, tokenizer.backend.to_str(), settings)
    with child_processes.pool(workers, _start_worker, start) as pool:
      futures = {
        pool.submit(_work, folder, number, rows[number]): number
        for number in missing
      }
      for future in concurrent.futures.as_completed(futures):
        blocks.finish(futures[future], **future.result())
        bar.update(len(rows[futures[future]]))
  return total


_worker: dict[
  str, Any
] = {}  # of a process that tokenizes: its table, tokenizer


def _start_worker(
  folder: pathlib.Path, backend: str, settings: dict[str, Any]
) -> None:
  """Opens the corpus in a child process."""
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are parallel
  _worker["passages"] = datasets.PassageTable.open(folder)
  _worker["tokenizer"] = tokenization.TextTokenizer(
    tokenizers.Tokenizer.from_str(backend), **settings
  )


def _work(folder: pathlib.Path, number: int, rows: range) -> dict[str, Any]:
  return _make_block(folder, number, rows, **_worker)


def _make_block(
  folder: pathlib.Path,
  number: int,
  rows: range,
  passages: datasets.PassageTable,
  tokenizer: tokenization.TextTokenizer,
) -> dict[str, Any]:
  """Writes one block; returns its record for `Parts.finish`."""
  pieces, ends = [], [0]
  for first in range(0, len(rows), _PIECE):
    texts = passages.take(rows[first : first + _PIECE])
    lists = tokenizer.passage_ids(texts)
    ends += [len(ids) for ids in lists]
    pieces.append(
      np.fromiter((i for ids in lists for i in ids), id_dtype(tokenizer))
    )
  ids = np.concatenate(pieces)
  special = sorted(tokenizer.special.all)
  unknown = special_tokens.unknown(tokenizer.backend)
  lengths, counts = np.unique(ends[1:], return_counts=True)
  ends = np.cumsum(ends).astype(np.uint32)
  files = {
    _name(kind, number): sharded_output.write_array(
      folder / _name(kind, number), array
    )
    for kind, array in (("ids", ids), ("ends", ends))
  }
  histogram = zip(lengths.tolist(), counts.tolist(), strict=True)
  return {
    "files": files,
    "tokens": int(ends[-1]),
    "text_tokens": int(np.isin(ids, special, invert=True).sum()),
    "unknown": 0 if unknown is None else int((ids == unknown).sum()),
    "lengths": {str(length): count for length, count in histogram},
  }
