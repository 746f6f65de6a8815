"""Recognises the layout of a checkpoint: whose files these are, and their use.

Input: a folder or a file that users have.  Output: a `Checkpoint`: for each of
the two towers its sizes, tokenizer and weights, and what the files say about
how the encoder is to be used (pooling, length, prompts).  `retriever_model`
builds the towers from it; nothing here depends on the config.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from dpr_jax.models import bert


@dataclasses.dataclass(frozen=True)
class Dense:
  """A dense layer after pooling, a Sentence-Transformers module.

  Attributes:
    kernel: weights, [inputs, outputs], float32.
    bias: [outputs], float32; None = no bias.
    activation: "identity" or "tanh".
  """

  kernel: np.ndarray
  bias: np.ndarray | None
  activation: str


@dataclasses.dataclass(frozen=True)
class Use:
  """How the files of a checkpoint say that its encoder is used.

  Attributes are None where the files do not say.

  Attributes:
    pooling: one of `dual_encoder.POOLINGS`.
    normalize: vectors have length 1.
    dense: dense layers after pooling, in order.
    length: tokens of the longest text.
    prefix: text before every text, of this tower's kind.
    pools_prefix: whether pooling includes the tokens of the prefix.
    title: as in `config.model.title`.
  """

  pooling: str | None = None
  normalize: bool | None = None
  dense: tuple[Dense, ...] = ()
  length: int | None = None
  prefix: str | None = None
  pools_prefix: bool = True
  title: str | None = None


@dataclasses.dataclass(frozen=True)
class TowerFiles:
  """One text encoder of a checkpoint.

  Attributes:
    folder: folder with `config.json` and the tokenizer's files.
    config: sizes of the encoder.
    tensors: reads the weights, by Hugging Face name without the prefix of the
      layout (`question_encoder.bert_model.`); heads may be among them.
    use: what the files say about the use.
  """

  folder: pathlib.Path
  config: bert.BertConfig
  tensors: Callable[[], Mapping[str, np.ndarray]]
  use: Use


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Both towers of a checkpoint.

  Attributes:
    layout: name of the layout, for the log: "Sentence-Transformers", ...
    question: the encoder of questions.
    passage: the encoder of passages; the same object where there is one only.
  """

  layout: str
  question: TowerFiles
  passage: TowerFiles
