"""Made-up vectors with the structure of real ones, for benchmarks.

Real passage vectors come in clusters (articles, topics) and vary much along few
directions and little along most.  So do these: cluster centres are Gaussian
with a standard deviation that falls with the square root of the direction's
number; a vector is a centre plus noise of the same shape, scaled to unit
length; the size of a cluster falls with the square root of its number.  A
question is a passage's vector plus noise, again of unit length.  Everything
follows from a seed, block by block, so that no more than a block is ever held.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK = 50_000
PER_CLUSTER = 100  # passages, on average
NOISE = 0.6  # of the centres' own spread, around a centre
QUESTION_NOISE = 0.6
_SEED = 20_201_110


class FileVectors:
  """Vectors in one `.npy` file, read through the memory map.

  Attributes:
    manifest: says that they are of no model.
    dim: width.
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
