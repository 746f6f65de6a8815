"""The peer for training and encoding: sentence-transformers on PyTorch.

It is measured without overhead: one model for questions and passages,
`MultipleNegativesRankingLoss`, fused AdamW, and no Trainer, data loader or
logs.  Texts are tokenized and padded to the longest of their column, as
sentence-transformers does, and truncated to the same tokens as ours.  The
cached peer takes `CachedMultipleNegativesRankingLoss` instead, which encodes
every text twice (GradCache) in mini-batches of a number of tokens; each is
padded to its own longest text.

PyTorch is an extra; it is imported only when a peer is created.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpr_jax.benchmarking import torch_training, training_texts
from dpr_jax.core import errors

NAME = "sentence-transformers"
CACHED = "sentence-transformers-cached"
# Tokens in a mini-batch of the cached peer: about 32 passages, its default.
CACHED_TOKENS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingSettings:
  """Settings of encoding that both sides share.

  Attributes:
    folder: folder of a checkpoint in Hugging Face's format.
    pooling: "cls" or "mean".
    normalize: whether vectors are scaled to length 1.
    passage_length: maximum length of a passage, in tokens.
  """

  folder: pathlib.Path
  pooling: str
  normalize: bool
  passage_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(EncodingSettings):
  """Settings of training that both sides share.

  Attributes:
    temperature: divisor of the scores.
    question_length: maximum length of a question, in tokens.
    dropout: dropout rate of all of BERT; negative = the checkpoint's rates.
    b1: Adam's decay of the first moment.
    b2: Adam's decay of the second moment.
    epsilon: Adam's epsilon.
    weight_decay: decay of matrices and embedding tables.
    clip_norm: largest global norm of the gradient; 0 = no clipping.
    seed: seed of dropout.
  """

  temperature: float
  question_length: int
  dropout: float
  b1: float
  b2: float
  epsilon: float
  weight_decay: float
  clip_norm: float
  seed: int


def _import_torch() -> Any:
  """PyTorch; `InputError` if it or sentence-transformers is missing."""
  try:
    import sentence_transformers  # noqa: F401
    import torch
  except ImportError as error:
    raise errors.InputError(
      f"--against={NAME} needs PyTorch and sentence-transformers ({error}):"
      " pip install 'dpr-jax[bench]'"
    ) from error
  return torch


def _load(settings: EncodingSettings, dtype: Any) -> Any:
  """The checkpoint as a SentenceTransformer on the CPU."""
  from sentence_transformers.sentence_transformer import modules
  from transformers.utils import logging as transformers_logging

  transformers_logging.disable_progress_bar()
  transformers_logging.set_verbosity_error()
  # Without token types: they are all 0, as in DPR.
  transformer = modules.Transformer(
    str(settings.folder),
    processor_kwargs={"model_input_names": ["input_ids", "attention_mask"]},
    model_kwargs={"dtype": dtype},
  )
  return assemble(settings, transformer)


def assemble(
  settings: EncodingSettings, transformer: Any, **options: Any
) -> Any:
  """A SentenceTransformer on the CPU, with the pooling of the settings."""
  from sentence_transformers import SentenceTransformer
  from sentence_transformers.sentence_transformer import modules

  parts = [
    transformer,
    modules.Pooling(
      transformer.get_embedding_dimension(), pooling_mode=settings.pooling
    ),
  ]
  if settings.normalize:
    parts.append(modules.Normalize())
  return SentenceTransformer(modules=parts, device="cpu", **options)


class Embedder:
  """The peer for encoding: `SentenceTransformer.encode`, which sorts by length.

  Attributes:
    batch_size: passages per batch.
  """

  def __init__(
    self,
    settings: EncodingSettings,
    dtype: str = "float32",
    batch_size: int = 32,
    load: Callable[[EncodingSettings, Any], Any] = _load,
  ):
    """Loads the checkpoint.

    Args:
      settings: settings that both sides share.
      dtype: PyTorch's name of the dtype.
      batch_size: passages per batch.
      load: returns a SentenceTransformer.

    Raises:
      InputError: PyTorch or sentence-transformers is not installed.
    """
    self._torch = _import_torch()
    self._model = load(settings, getattr(self._torch, dtype))
    self._model.eval()
    self._length = settings.passage_length
    self._model.max_seq_length = self._length
    self.batch_size = batch_size

  @property
  def threads(self) -> int:
    """Number of threads that PyTorch uses."""
    return self._torch.get_num_threads()

  def encode(self, passages: Sequence[training_texts.Text]) -> np.ndarray:
    """float32 vectors of passages, [passages, dim], from their texts."""
    vectors = self._model.encode(
      list(passages),
      batch_size=self.batch_size,
      show_progress_bar=False,
      convert_to_numpy=False,
      convert_to_tensor=True,
    )
    return vectors.float().numpy()


def mini_batches(mask: np.ndarray, tokens: int) -> list[np.ndarray]:
  """The masks of the mini-batches of a column of texts.

  As sentence-transformers makes them: as many texts in a row as have no more
  tokens together, at least one, without the columns that are padding in all.

  Args:
    mask: bool, True at tokens, [texts, length]; every text has a token.
    tokens: number of tokens of a mini-batch, without padding.
  """
  lengths, parts, start = mask.sum(1), [], 0
  while start < len(mask):
    fit = np.cumsum(lengths[start:]) <= tokens
    end = start + max(1, int(fit.sum()))
    part = mask[start:end]
    parts.append(part[:, : 1 + int(np.flatnonzero(part.any(0))[-1])])
    start = end
  return parts


class Peer:
  """The peer for training.

  Attributes:
    name: `NAME`, or `CACHED`.
  """

  def __init__(self, settings: Settings, name: str = NAME):
    """Loads the checkpoint.

    Raises:
      InputError: PyTorch or sentence-transformers is not installed.
    """
    torch = _import_torch()
    torch.manual_seed(settings.seed)
    self.name = name
    self._torch = torch
    self._settings = settings
    self._model = _load(settings, torch.float32)
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import losses

    self._model.train()
    self._dropouts = [
      (module, module.p)
      for module in self._model.modules()
      if isinstance(module, torch.nn.Dropout)
    ]
    self.restore_dropout()
    options = {
      "scale": 1 / settings.temperature,
      # `Normalize` has already scaled the vectors if the settings ask for it.
      "similarity_fct": util.dot_score,
    }
    self._loss = (
      losses.CachedMultipleNegativesRankingLoss(
        self._model, mini_batch_num_tokens=CACHED_TOKENS, **options
      )
      if name == CACHED
      else losses.MultipleNegativesRankingLoss(self._model, **options)
    )
    self._optimizer = torch_training.adamw(
      torch,
      self._model,
      weight_decay=settings.weight_decay,
      betas=(settings.b1, settings.b2),
      epsilon=settings.epsilon,
    )

  @property
  def threads(self) -> int:
    """Number of threads that PyTorch uses."""
    return self._torch.get_num_threads()

  def set_dropout(self, rate: float) -> None:
    """Sets the rate of all dropouts; negative = the checkpoint's rates."""
    for module, own in self._dropouts:
      module.p = own if rate < 0 else rate

  def restore_dropout(self) -> None:
    """Resets dropout to the settings."""
    self.set_dropout(self._settings.dropout)

  def masks(
    self,
    questions: Sequence[str],
    passages: Sequence[Sequence[training_texts.Text]],
  ) -> list[np.ndarray]:
    """Attention masks of the arrays that `step` computes on."""
    whole = [
      one["attention_mask"].numpy().astype(bool)
      for one in self._features(questions, passages)
    ]
    if self.name != CACHED:
      return whole
    return [
      part for mask in whole for part in mini_batches(mask, CACHED_TOKENS)
    ]

  def step(
    self,
    questions: Sequence[str],
    passages: Sequence[Sequence[training_texts.Text]],
    learning_rate: float,
  ) -> float:
    """Runs one training step, from texts to new parameters.

    Args:
      questions: questions of the batch.
      passages: columns of passages: the positives of all questions, then their
        first negatives, ...
      learning_rate: learning rate of this step.

    Returns:
      The loss before the step.
    """
    features = self._features(questions, passages)
    loss = self._loss(features, self._torch.zeros(len(questions)))
    return torch_training.descend(
      self._torch,
      self._model,
      self._optimizer,
      loss,
      learning_rate=learning_rate,
      clip_norm=self._settings.clip_norm,
    )

  def _features(
    self,
    questions: Sequence[str],
    passages: Sequence[Sequence[training_texts.Text]],
  ) -> list[Any]:
    def tokenize(texts: Sequence[training_texts.Text], length: int) -> Any:
      return self._model.preprocess(
        list(texts), processing_kwargs={"text": {"max_length": length}}
      )

    return [
      tokenize(questions, self._settings.question_length),
      *(tokenize(each, self._settings.passage_length) for each in passages),
    ]
