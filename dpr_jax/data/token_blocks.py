"""Makes the blocks of the token store, in child processes.

Input: the corpus, a tokenizer, and perhaps the store of an earlier corpus.
Output: the files of the missing blocks, each with its record.  Of passages
whose digest is in the earlier store the ids are copied, the others are
tokenized; the files are the same.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int, UInt, UInt64

from dpr_jax.core import (
  child_processes,
  earlier_output,
  memory,
  progress,
  sharded_output,
)
from dpr_jax.data import datasets, special_tokens, tokenization

DIGESTS = "digests"
KINDS = ("ids", "ends", DIGESTS)  # of files
_PIECE = 1024  # passages tokenized at once
# Passages that one process tokenizes in the seconds that another takes to
# start: with fewer, a further process is not worth it.
_WORTH_A_PROCESS = 20_000


@runtime_checkable
class Earlier(Protocol):
  """The part of `token_store.TokenStore` that is reused."""

  def digests(self) -> UInt64[np.ndarray, " rows"]:
    """Digests of its passages."""
    ...

  def ids(self, row: int) -> UInt[np.ndarray, " tokens"]:
    """Token ids of one passage."""
    ...


def id_dtype(tokenizer: tokenization.TextTokenizer) -> type[np.unsignedinteger]:
  """The smallest dtype of token ids."""
  small = tokenizer.backend.get_vocab_size() <= 1 << 16
  return np.uint16 if small else np.uint32


def name(kind: str, number: int) -> str:
  """Name of a block's file."""
  return f"{kind}-{number:05d}.npy"


@dataclasses.dataclass(frozen=True)
class Work:
  """What every process that makes blocks knows.

  Attributes:
    folder: folder of the store.
    passages: the corpus.
    tokenizer: tokenizer and text format of the passages.
    size: passages of a block.
    earlier: the store of an earlier corpus; None = none.
    digests: digests of the corpus; None = it has none.
  """

  folder: pathlib.Path
  passages: datasets.PassageTable
  tokenizer: tokenization.TextTokenizer
  size: int
  earlier: Earlier | None
  digests: UInt64[np.ndarray, " rows"] | None

  def __reduce__(self):
    # In a child process nothing looks up digests, and a tokenizer is its text.
    text = (self.tokenizer.backend.to_str(), self.tokenizer.text_format())
    rest = (self.size, self.earlier)
    return _unpickled, (self.folder, self.passages, text, *rest)


def _unpickled(
  folder: pathlib.Path,
  passages: datasets.PassageTable,
  text: tuple[str, dict[str, Any]],
  *rest: Any,
) -> Work:
  backend, settings = text
  tokenizer = tokenization.TextTokenizer(
    tokenizers.Tokenizer.from_str(backend), **settings
  )
  return Work(folder, passages, tokenizer, *rest, None)


@dataclasses.dataclass(frozen=True)
class Block:
  """A block to make.

  Attributes:
    number: its number.
    rows: its rows of the corpus.
    before: the row of each in the earlier store; -1 = none.
    digests: digest of each; None = the corpus has none.
  """

  number: int
  rows: range
  before: Int[np.ndarray, " rows"]
  digests: UInt64[np.ndarray, " rows"] | None


def make(
  blocks: sharded_output.Parts, work: Work, workers: int
) -> tuple[int, int]:
  """Makes the missing blocks of this process.

  Args:
    blocks: the parts of the store.
    work: what to make them of.
    workers: child processes that tokenize; 0 = one per CPU, and none for a
      small corpus.

  Returns:
    Numbers of passages that were tokenized, and that were copied.
  """
  missing = [number for number in blocks.mine if blocks.find(number) is None]
  made = _blocks(work, missing)
  total = sum(len(block.rows) for block in made)
  copied = sum(int((block.before >= 0).sum()) for block in made)
  if not workers:
    workers = min(
      memory.usable_cpus(),
      len(missing),
      1 + (total - copied) // _WORTH_A_PROCESS,
    )
  with progress.Progress(total, "tokenize", "passages") as bar:
    if workers <= 1:
      for block in made:
        blocks.finish(block.number, **_make_block(work, block))
        bar.update(len(block.rows))
      return total - copied, copied
    with child_processes.pool(workers, _start_worker, (work,)) as pool:
      futures = {pool.submit(_in_worker, block): block for block in made}
      for future in concurrent.futures.as_completed(futures):
        block = futures[future]
        blocks.finish(block.number, **future.result())
        bar.update(len(block.rows))
  return total - copied, copied


def _blocks(work: Work, numbers: Sequence[int]) -> list[Block]:
  """The blocks of these numbers, with the earlier rows of their passages."""
  everything = range(len(work.passages))
  rows = [everything[n * work.size : (n + 1) * work.size] for n in numbers]
  if work.digests is None:
    befores = [np.full(len(some), -1) for some in rows]
    digests = [None] * len(rows)
  else:
    found = earlier_output.RowsByDigest(
      np.zeros(0, np.uint64) if work.earlier is None else work.earlier.digests()
    )
    digests = [np.array(work.digests[some.start : some.stop]) for some in rows]
    befores = [found.find(each) for each in digests]
  return [
    Block(*each) for each in zip(numbers, rows, befores, digests, strict=True)
  ]


_worker: dict[str, Work] = {}  # of a process that tokenizes


def _start_worker(work: Work) -> None:
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are parallel
  _worker["work"] = work


def _in_worker(block: Block) -> dict[str, Any]:
  return _make_block(_worker["work"], block)


def _make_block(work: Work, block: Block) -> dict[str, Any]:
  """Writes one block; returns its record for `Parts.finish`."""
  tokenizer, dtype = work.tokenizer, id_dtype(work.tokenizer)
  pieces, ends = [], [0]
  for first in range(0, len(block.rows), _PIECE):
    rows = block.rows[first : first + _PIECE]
    before = block.before[first : first + _PIECE].tolist()
    new = [row for row, old in zip(rows, before, strict=True) if old < 0]
    tokenized = iter(tokenizer.passage_ids(work.passages.take(new)))
    lists = [
      next(tokenized) if old < 0 else work.earlier.ids(old) for old in before
    ]
    ends += [len(ids) for ids in lists]
    pieces += [np.asarray(ids, dtype) for ids in lists]
  ids = np.concatenate(pieces)
  special = sorted(tokenizer.special.all)
  unknown = special_tokens.unknown(tokenizer.backend)
  lengths, counts = np.unique(ends[1:], return_counts=True)
  arrays = {"ids": ids, "ends": np.cumsum(ends).astype(np.uint32)}
  if block.digests is not None:
    arrays[DIGESTS] = block.digests
  files = {
    name(kind, block.number): sharded_output.write_array(
      work.folder / name(kind, block.number), array
    )
    for kind, array in arrays.items()
  }
  histogram = zip(lengths.tolist(), counts.tolist(), strict=True)
  return {
    "files": files,
    "tokens": len(ids),
    "text_tokens": int(np.isin(ids, special, invert=True).sum()),
    "unknown": 0 if unknown is None else int((ids == unknown).sum()),
    "lengths": {str(length): count for length, count in histogram},
  }
