"""The library bm25s over the words that our BM25 index has."""

from collections.abc import Mapping
from typing import Any

from dpr_jax.retrieval import bm25, bm25_build, text_analysis

_BLOCK = 2048  # passages read at once


def index(
  passages: bm25_build.Passages,
  vocabulary: Mapping[str, int],
  parameters: bm25.Parameters,
) -> Any:
  """A bm25s.BM25 in memory.

  Args:
    passages: the corpus.
    vocabulary: number of each word in it.
    parameters: those of our index.
  """
  bm25s = text_analysis.library()
  words, ids = parameters.splitter().words, []
  for first in range(0, len(passages), _BLOCK):
    rows = range(first, min(first + _BLOCK, len(passages)))
    for passage in passages.take(rows):
      text = bm25_build.passage_text(passage)
      ids.append([vocabulary[word] for word in words(text)])
  library = bm25s.BM25(k1=parameters.k1, b=parameters.b, method="lucene")
  library.index(
    bm25s.tokenization.Tokenized(ids=ids, vocab=dict(vocabulary)),
    create_empty_token=False,
    show_progress=False,
  )
  return library
