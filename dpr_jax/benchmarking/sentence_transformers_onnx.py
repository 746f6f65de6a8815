"""The peer for encoding with 8 bits: sentence-transformers' ONNX backend.

The checkpoint is exported and quantised by sentence-transformers itself, with
its settings for the processor.  That needs optimum-onnx, which needs
transformers 4: install it into a folder of its own (docs/scale.md).
"""

import pathlib
import tempfile
from typing import Any

from dpr_jax.benchmarking import sentence_transformers_peer as peer_lib
from dpr_jax.core import errors

_INSTALL = (
  "needs optimum-onnx, which needs transformers < 4.58; see `bench encode` in"
  " docs/scale.md"
)


def load(settings: peer_lib.EncodingSettings, dtype: Any) -> Any:
  """The checkpoint with 8 bits, for `peer_lib.Embedder`.

  Args:
    settings: settings that both sides share.
    dtype: not used: the graph decides.

  Raises:
    InputError: optimum-onnx is not installed.
  """
  try:
    import optimum.onnxruntime  # noqa: F401
  except ImportError as error:
    raise errors.InputError(
      f"--against={peer_lib.NAME}-onnx-int8 {_INSTALL} ({error})"
    ) from error
  from sentence_transformers import (
    SentenceTransformer,
    export_dynamic_quantized_onnx_model,
  )
  from sentence_transformers.sentence_transformer import modules

  provider = {"provider": "CPUExecutionProvider"}
  transformer = modules.Transformer(
    str(settings.folder),
    model_kwargs={**provider, "export": True},
    backend="onnx",
  )
  kind, file = processor()
  model = peer_lib.assemble(settings, transformer, backend="onnx")
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    export_dynamic_quantized_onnx_model(model, kind, folder)
    return SentenceTransformer(
      folder,
      backend="onnx",
      device="cpu",
      model_kwargs={**provider, "file_name": f"onnx/{file}"},
    )


def processor(cpuinfo: str | None = None) -> tuple[str, str]:
  """sentence-transformers' settings for this processor, and their file.

  Args:
    cpuinfo: text of /proc/cpuinfo; None = that of this machine.
  """
  if cpuinfo is None:
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
  if "avx512_vnni" in cpuinfo:
    return "avx512_vnni", "model_qint8_avx512_vnni.onnx"
  return "avx2", "model_quint8_avx2.onnx"
