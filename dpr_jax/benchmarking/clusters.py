"""Synthetic vectors with the structure of real ones, for benchmarks.

Real passage vectors form clusters (articles, topics) and vary a lot in a few
dimensions and little in most.  These do the same: cluster centres are Gaussian
with a standard deviation of 1 / sqrt(number of the dimension); a vector is a
centre plus noise of the same shape, scaled to length 1; the size of a cluster
is proportional to 1 / sqrt(number of the cluster).  A question is a passage's
vector plus noise, again of length 1.  Blocks are generated from a seed, so that
only one block is in memory at a time.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK = 50_000
PER_CLUSTER = 100  # passages per cluster on average
NOISE = 0.6  # noise around a centre, relative to the spread of centres
QUESTION_NOISE = 0.6
_SEED = 20_201_110


class FileVectors:
  """Vectors in one `.npy` file, read through the memory map.

  Attributes:
    manifest: stand-in for a manifest; its model is "clusters".
    dim: dimension of the vectors.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self.manifest: dict[str, Any] = {"model": "clusters"}
    self._count, self.dim = np.load(path, mmap_mode="r").shape

  def __len__(self) -> int:
    return self._count

  def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, at most `rows` vectors as float32)."""
    vectors = np.load(self._path, mmap_mode="r")
    for first in range(0, len(vectors), rows):
      yield first, np.asarray(vectors[first : first + rows], np.float32)

  def take(self, rows: np.ndarray) -> np.ndarray:
    """float32 vectors of some rows."""
    return np.asarray(np.load(self._path, mmap_mode="r")[rows], np.float32)


def write(
  folder: pathlib.Path, count: int, dim: int, questions: int
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes vectors and question vectors; returns the two files."""
  passages, asked = folder / "vectors.npy", folder / "questions.npy"
  vectors = np.lib.format.open_memmap(
    passages, mode="w+", dtype=np.float32, shape=(count, dim)
  )
  scale = 1 / np.sqrt(1 + np.arange(dim, dtype=np.float32))
  clusters = max(1, count // PER_CLUSTER)
  generator = np.random.default_rng(_SEED)
  centres = scale * generator.standard_normal((clusters, dim), np.float32)
  weights = np.arange(1, clusters + 1) ** -0.5
  weights /= weights.sum()
  for first in range(0, count, BLOCK):
    generator = np.random.default_rng((_SEED, first))
    rows = min(BLOCK, count - first)
    chosen = generator.choice(clusters, rows, p=weights)
    noise = scale * generator.standard_normal((rows, dim), np.float32)
    vectors[first : first + rows] = _unit(centres[chosen] + NOISE * noise)
  generator = np.random.default_rng((_SEED, count, 1))
  near = np.sort(generator.choice(count, questions, replace=questions > count))
  noise = scale * generator.standard_normal((questions, dim), np.float32)
  size = np.sqrt(np.sum(scale**2) * (1 + NOISE**2))
  np.save(asked, _unit(vectors[near] + QUESTION_NOISE * noise / size))
  vectors.flush()
  return passages, asked


def _unit(vectors: np.ndarray) -> np.ndarray:
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
