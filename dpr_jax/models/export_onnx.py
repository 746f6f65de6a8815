"""Writes the towers as ONNX graphs, in the layout of Sentence-Transformers.

`onnx/model.onnx` stands where the weights of a transformer would: so
`SentenceTransformer(folder, backend="onnx")` finds it, and ONNX Runtime needs
nothing else.  With int8 there is `onnx/model_int8.onnx` beside it
(`onnx_int8.py`): weights of matrix products and the word embeddings in 8 bits.
"""

import functools
import pathlib
from typing import Any

from absl import logging

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import export_parts as parts
from dpr_jax.models import (
  export_sentence_transformers,
  model_files,
  onnx_graph,
  onnx_int8,
  retriever_model,
)

FILE, INT8 = "onnx/model.onnx", "onnx/model_int8.onnx"
# Protocol buffers end at 2 GiB: beyond, weights go to a file of their own.
LARGEST = 1_900_000_000


def write(
  model: retriever_model.Towers, folder: pathlib.Path, int8: bool = False
) -> dict[str, str]:
  """Writes all files, except the model card.

  Args:
    model: the towers.
    folder: an empty folder.
    int8: also write graphs with int8 weights.

  Returns:
    Folder of each transformer by kind of text, relative to `folder`.

  Raises:
    InputError: a library is missing, or the encoder cannot be expressed.
  """
  onnx_graph.helper()
  return export_sentence_transformers.write(
    model, folder, functools.partial(_write_graph, int8=int8)
  )


def _write_graph(
  model: retriever_model.Towers, kind: str, folder: pathlib.Path, int8: bool
) -> None:
  """In place of the weights: `onnx/model.onnx`, and the tokenizer's config."""
  onnx = onnx_graph.helper()
  longest = parts.length(model, kind)
  model_files.write_tokenizer_config(folder, longest)
  graph = onnx_graph.build(model, kind)
  path = folder / FILE
  path.parent.mkdir(exist_ok=True)
  with workdir_lib.writing(path):
    save(graph, path)
    onnx.checker.check_model(str(path))
  if int8:
    target = folder / INT8
    graph = onnx_graph.build(model, kind, onnx_int8.Graph(tables=True))
    with workdir_lib.writing(target):
      save(graph, target)
      onnx.checker.check_model(str(target))
    shrunk = target.stat().st_size / path.stat().st_size
    logging.info("export: %s has %.0f%% of the size", target.name, 100 * shrunk)


def save(graph: Any, path: pathlib.Path) -> None:
  """Writes a graph; weights beyond `LARGEST` go to a file beside it."""
  large = graph.ByteSize() > LARGEST
  onnx_graph.helper().save(
    graph,
    str(path),
    save_as_external_data=large,
    location=f"{path.name}_data",
  )
