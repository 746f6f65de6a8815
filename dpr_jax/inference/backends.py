"""The encoder of a config's `embed.backend`."""

import ml_collections

from dpr_jax.inference import encoder, onnx_encoder, tiled_encoder
from dpr_jax.models import retriever_model


def sized(
  model: retriever_model.Towers, settings: ml_collections.ConfigDict
) -> tiled_encoder.TiledEncoder:
  """An encoder with backend and sizes of section `embed` of a config.

  Args:
    model: towers and tokenizer.
    settings: section `embed`.

  Raises:
    InputError: a library of the backend is not installed.
  """
  if settings.backend == onnx_encoder.BACKEND:
    return onnx_encoder.OnnxEncoder(
      model,
      tokens_per_core=settings.tokens_per_core,
      length_step=settings.length_step,
    )
  return encoder.sized(model, settings)
