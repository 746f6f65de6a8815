"""Writes the towers as ONNX graphs, in the layout of Sentence-Transformers.

`onnx/model.onnx` stands where the weights of a transformer would: so
`SentenceTransformer(folder, backend="onnx")` finds it, and ONNX Runtime needs
nothing else.  With int8 there is `onnx/model_int8.onnx` beside it: weights of
matrix products and the word embeddings in 8 bits, per channel, activations
quantised as they come ("dynamic").
"""

import contextlib
import functools
import logging as py_logging
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import export_parts as parts
from dpr_jax.models import (
  export_sentence_transformers,
  model_files,
  onnx_graph,
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
  if int8:
    _quantizer()
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
  large = graph.ByteSize() > LARGEST
  with workdir_lib.writing(path):
    onnx.save(
      graph,
      str(path),
      save_as_external_data=large,
      location=f"{path.name}_data",
    )
    onnx.checker.check_model(str(path))
  if int8:
    _quantize(path, folder / INT8, large)


def _quantizer() -> Any:
  """`onnxruntime.quantization`; `InputError` if it is not installed."""
  try:
    from onnxruntime import quantization
  except ImportError as error:
    raise errors.InputError(
      "--int8: the library onnxruntime is not installed: pip install"
      " 'dpr-jax[onnx]'"
    ) from error
  return quantization


def _quantize(source: pathlib.Path, target: pathlib.Path, large: bool) -> None:
  quantization = _quantizer()
  with workdir_lib.writing(target), _quiet():
    quantization.quantize_dynamic(
      source,
      target,
      op_types_to_quantize=["MatMul", "Gather"],
      per_channel=True,
      weight_type=quantization.QuantType.QInt8,
      use_external_data_format=large,
    )
  shrunk = target.stat().st_size / source.stat().st_size
  logging.info("export: %s has %.0f%% of the size", target.name, 100 * shrunk)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without the advice to pre-process, which changes nothing here."""
  root = py_logging.getLogger()
  level = root.level
  root.setLevel(py_logging.ERROR)
  try:
    yield
  finally:
    root.setLevel(level)
