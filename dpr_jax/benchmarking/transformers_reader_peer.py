"""The peer for readers: transformers' question answering on PyTorch.

Trains `BertForQuestionAnswering` like transformers' own example
(`examples/pytorch/question-answering/run_qa_no_trainer.py`): its tokenizer with
`truncation="only_second"` and a stride, the first window that contains the
answer, AdamW, the mean of the cross-entropies of start and end.  It is faster
than the example: batches are padded to their longest row, AdamW is fused, and
nothing is logged.

PyTorch is an extra; it is imported only when a peer is created.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpr_jax.benchmarking import torch_training
from dpr_jax.core import errors

NAME = "transformers"


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of training that both sides share.

  Attributes:
    folder: folder of a checkpoint in Hugging Face's format.
    length: maximum length of question and paragraph, in tokens.
    overlap: number of tokens that two windows share.
    dropout: dropout rate of all of BERT; negative = the checkpoint's rates.
    weight_decay: decay of matrices and embedding tables.
    clip_norm: largest global norm of the gradient; 0 = no clipping.
    seed: seed of dropout and of the new head.
  """

  folder: pathlib.Path
  length: int
  overlap: int
  dropout: float
  weight_decay: float
  clip_norm: float
  seed: int


@dataclasses.dataclass(frozen=True)
class Row:
  """A question with its paragraph; its answer is paragraph[start:end]."""

  question: str
  paragraph: str
  start: int
  end: int


class Peer:
  """The peer for training."""

  def __init__(self, settings: Settings):
    """Loads the checkpoint.

    Raises:
      InputError: PyTorch is not installed.
    """
    try:
      import torch
    except ImportError as error:
      raise errors.InputError(
        f"--against={NAME} needs PyTorch ({error}): pip install"
        " 'dpr-jax[bench]'"
      ) from error
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    torch.manual_seed(settings.seed)
    self._torch, self._settings = torch, settings
    folder = str(settings.folder)
    self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rates = {}
    if settings.dropout >= 0:
      rates = {
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": settings.dropout,
      }
    self._model = transformers.BertForQuestionAnswering.from_pretrained(
      folder, dtype=torch.float32, **rates
    )
    self._model.train()
    self._optimizer = torch_training.adamw(
      torch, self._model, weight_decay=settings.weight_decay
    )

  @property
  def threads(self) -> int:
    """Number of threads that PyTorch uses."""
    return self._torch.get_num_threads()

  def step(self, rows: Sequence[Row], learning_rate: float) -> float:
    """Runs one step, from texts to new parameters; returns the loss."""
    return torch_training.descend(
      self._torch,
      self._model,
      self._optimizer,
      self._model(**self.features(rows)).loss,
      learning_rate=learning_rate,
      clip_norm=self._settings.clip_norm,
    )

  def features(self, rows: Sequence[Row]) -> dict[str, Any]:
    """The input arrays of `step`, one window per question."""
    encoded = self._tokenizer(
      [row.question.lstrip() for row in rows],
      [row.paragraph for row in rows],
      truncation="only_second",
      max_length=self._settings.length,
      stride=self._settings.overlap,
      return_overflowing_tokens=True,
      return_offsets_mapping=True,
    )
    owners = encoded["overflow_to_sample_mapping"]
    chosen: dict[int, tuple[int, int, int]] = {}
    for window, owner in enumerate(owners):
      row = rows[owner]
      places = [
        place
        for place, (part, (start, end)) in enumerate(
          zip(
            encoded.sequence_ids(window),
            encoded["offset_mapping"][window],
            strict=True,
          )
        )
        if part == 1 and start < row.end and end > row.start
      ]
      spans = encoded["offset_mapping"][window]
      whole = (
        places
        and spans[places[0]][0] <= row.start
        and spans[places[-1]][1] >= row.end
      )
      if whole:
        chosen.setdefault(owner, (window, places[0], places[-1]))
    picked = [chosen[i] for i in range(len(rows)) if i in chosen]
    batch = self._tokenizer.pad(
      {
        name: [encoded[name][window] for window, _, _ in picked]
        for name in ("input_ids", "attention_mask", "token_type_ids")
      },
      return_tensors="pt",
    )
    tensor = self._torch.tensor
    return {
      **batch,
      "start_positions": tensor([start for _, start, _ in picked]),
      "end_positions": tensor([end for _, _, end in picked]),
    }

  def tensors(self) -> dict[str, np.ndarray]:
    """The weights by their names in transformers."""
    return {
      name: value.detach().numpy().copy()
      for name, value in self._model.state_dict().items()
    }
