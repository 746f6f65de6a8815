"""What a checkpoint holds: the files of its towers, and how they are used.

`checkpoint_layouts.open_` makes these from the files that users have;
`retriever_model` builds the towers from them.  Nothing depends on the config.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from dpr_jax.core import errors
from dpr_jax.models import bert


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
  """A dense layer after pooling, a Sentence-Transformers module.

  Attributes:
    kernel: weights.
    bias: None = no bias.
    activation: "identity" or "tanh".
  """

  kernel: Float[np.ndarray, "inputs outputs"]
  bias: Float[np.ndarray, " outputs"] | None
  activation: str

  @classmethod
  def of_linear(
    cls,
    path: pathlib.Path,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    activation: str = "identity",
  ) -> "Dense":
    """A layer from the tensors of a `torch.nn.Linear`, [out, in] and [out].

    Args:
      path: where they are from, for error messages.
      weight: the weights.
      bias: None = no bias.
      activation: "identity" or "tanh".

    Raises:
      InputError: the weights are missing, or the shapes do not fit.
    """
    if (
      weight is None
      or weight.ndim != 2
      or (bias is not None and bias.shape != weight.shape[:1])
    ):
      raise errors.InputError(
        f"{path}: a dense layer has no weight of two dimensions, or a bias of"
        " another width: the weights are damaged; copy them again"
      )
    return cls(
      np.asarray(weight, np.float32).T,
      None if bias is None else np.asarray(bias, np.float32),
      activation,
    )


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


@dataclasses.dataclass(frozen=True, eq=False)
class TowerFiles:
  """One text encoder of a checkpoint.

  Attributes:
    folder: folder with the tokenizer's files.
    config: sizes of the encoder.
    tensors: reads the weights, by Hugging Face name without the prefix of the
      layout (`question_encoder.bert_model.`); heads may be among them.
    use: what the files say about the use.
    heads: names of the heads among the tensors, which no tower uses.
  """

  folder: pathlib.Path
  config: bert.BertConfig
  tensors: Callable[[], Mapping[str, np.ndarray]]
  use: Use
  heads: tuple[str, ...] = ()

  def same_weights(self, other: "TowerFiles") -> bool:
    """True where another tower is this one, apart from the text format."""
    return self.tensors is other.tensors and self.use.dense == other.use.dense


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
  """Both towers of a checkpoint.

  Attributes:
    layout: name of the layout, for the log: "Sentence-Transformers", ...
    question: the encoder of questions.
    passage: the encoder of passages.
  """

  layout: str
  question: TowerFiles
  passage: TowerFiles

  @property
  def shared(self) -> bool:
    """True where the checkpoint has one encoder for both kinds of text."""
    return self.question.same_weights(self.passage)
