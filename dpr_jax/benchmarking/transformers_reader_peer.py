"""The peer in reading: transformers' question answering on PyTorch.

`BertForQuestionAnswering` trained as transformers' own example does it
(`examples/pytorch/question-answering/run_qa_no_trainer.py`): its tokenizer with
`truncation="only_second"` and a stride, the first window that holds the answer,
AdamW, the mean of the cross-entropies of start and end.  Leaner than there:
each batch is padded to its own longest row, AdamW is fused, nothing is logged.

PyTorch is an extra and is imported here alone, when a peer is made.
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
  """What the peer must have in common with us.

  Attributes:
    folder: the checkpoint, as Hugging Face lays it out.
    length: tokens of question and paragraph.
    overlap: tokens that two windows share.
    dropout: rate everywhere; negative = the checkpoint's.
    weight_decay: of matrices and tables.
    clip_norm: of the whole gradient; 0 = no clipping.
    seed: of dropout and of the new head.
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
  """A question with its paragraph and the characters of its answer."""

  question: str
  paragraph: str
  start: int
  end: int


class Peer:
  """A model in training."""

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
    """Threads that PyTorch computes with."""
    return self._torch.get_num_threads()

  def step(self, rows: Sequence[Row], learning_rate: float) -> float:
    """One step of training, from texts to new parameters; gives the loss."""
    return torch_training.descend(
      self._torch,
      self._model,
      self._optimizer,
      self._model(**self.features(rows)).loss,
      learning_rate=learning_rate,
      clip_norm=self._settings.clip_norm,
    )

  def features(self, rows: Sequence[Row]) -> dict[str, Any]:
    """The arrays that `step` computes on, one window a question."""
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
    """The weights by transformers' names."""
    return {
      name: value.detach().numpy().copy()
      for name, value in self._model.state_dict().items()
    }
