"""What towers can start from: a checkpoint, a pair of them, another workdir.

Input: section `model` of a config.  Output: a `Source`, which knows what the
checkpoint says of its use, and loads tokenizer and weights when asked.
`retriever_model.start` builds the towers from it, `resolved` the settings.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import tokenizers
from absl import logging

from dpr_jax.core import errors, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import tokenization
from dpr_jax.models import (
  auto_settings,
  bert,
  checkpoint_layouts,
  checkpoint_sources,
  hf_weights,
  model_settings,
  pooling_layers,
)

_PAIR = ("question_checkpoint", "passage_checkpoint")
# Sizes that may differ between towers: they do not change the structure.
_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclasses.dataclass(frozen=True)
class Source:
  """A retriever before its settings are known.

  Attributes:
    name: name of the checkpoint, for messages.
    sizes: sizes of its encoders.
    said: settings of `auto_settings.AUTO` that it names.
    head: dense layers after pooling, and whether prefixes are pooled.
    single: one encoder for both kinds of text.
    tokenizer: loads the tokenizer.
    trees: loads the parameters: of questions, or of both; and of passages, or
      None.
  """

  name: str
  sizes: bert.BertConfig
  said: Mapping[str, Any]
  head: pooling_layers.Head
  single: bool
  tokenizer: Callable[[], tokenizers.Tokenizer]
  trees: Callable[[], tuple[Any, Any]]

  @classmethod
  def of_sizes(
    cls, name: str, sizes: bert.BertConfig, said: Mapping[str, Any]
  ) -> "Source":
    """A checkpoint that is only known, without any files."""

    def missing() -> Any:
      raise errors.InputError(f"checkpoint {name}: its files are not read here")

    head = pooling_layers.Head()
    return cls(name, sizes, said, head, True, missing, missing)

  def resolved(self, model: Any) -> dict[str, Any]:
    """The settings of `auto_settings.AUTO` that a section `model` stands for.

    Raises:
      InputError: shared towers are asked of two different encoders.
    """
    if model["shared_towers"] and not self.single:
      raise errors.InputError(
        f"config.model.shared_towers=True: checkpoint {self.name} has two"
        " different encoders: set it to False, or give a checkpoint of one"
      )
    return auto_settings.resolve(
      model,
      self.said,
      positions=self.sizes.max_position_embeddings,
      source=self.name,
    )


def of_model(model: Any, seed: int) -> Source:
  """The source that section `model` of a config names.

  Args:
    model: the section.
    seed: seed of "random" parameters.

  Raises:
    InputError: there is no such checkpoint, or its two encoders do not fit
      together; the message names both.
  """
  pair = [model[key] for key in _PAIR]
  setting_rules.checkpoint_pair(*pair, model.shared_towers)
  if all(pair):
    first, second = (
      _checkpoint(name, tower)
      for name, tower in zip(pair, ("question", "passage"), strict=True)
    )
    return _source(
      " and ".join(pair),
      checkpoint_layouts.Checkpoint(
        f"{first.layout} and {second.layout}", first.question, second.passage
      ),
      tuple(pair),
    )
  return of_name(model.checkpoint, model, seed)


def with_values(
  section: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A copy of a section of a config with other values."""
  section = copy.deepcopy(section)
  model_settings.take(section, values)
  return section


def of_name(name: str, model: Any, seed: int) -> Source:
  """As `of_model`, of a name that `config.model.checkpoint` may have."""
  if name == "random":
    return _random(model, seed)
  where = workdir_of(name)
  if where is not None:
    return _of_workdir(name, where)
  return _source(name, _checkpoint(name), (name, name))


def passage_tower(
  name: str, model: Any, seed: int
) -> tuple[bert.BertConfig, Any, tokenizers.Tokenizer]:
  """Sizes, parameters and tokenizer of the encoder of passages alone.

  Dense layers after pooling are left out.

  Args:
    name: what `config.model.checkpoint` may name.
    model: section `model` of the config, for "random".
    seed: seed of "random" parameters.
  """
  if name == "random" or workdir_of(name) is not None:
    source = of_name(name, model, seed)
  else:
    source = _source(name, _checkpoint(name, "passage"), (name, name))
  first, second = source.trees()
  tower = first if second is None else second
  dense = source.head.shapes()
  tree = {key: value for key, value in tower.items() if key not in dense}
  return source.sizes, tree, source.tokenizer()


def workdir_of(name: str) -> workdir_lib.Workdir | None:
  """The workdir that a checkpoint's name stands for; None = it is none."""
  if name in ("", "starter", "random") or name.startswith("hf:"):
    return None
  where = workdir_lib.Workdir(workdir_lib.user_path(name))
  return where if (where.training / "checkpoints").is_dir() else None


def random_sizes(model: Any) -> bert.BertConfig:
  """Sizes of `config.model.checkpoint="random"`."""
  return bert.BertConfig(
    hidden_size=model.random_width,
    num_hidden_layers=model.random_layers,
    num_attention_heads=model.random_heads,
    intermediate_size=4 * model.random_width,
  )


def _random(model: Any, seed: int) -> Source:
  sizes = random_sizes(model)

  def trees() -> tuple[Any, None]:
    tower = bert.init_params(sizes, jax.random.key(seed))
    return jax.tree.map(np.asarray, tower), None

  def backend() -> tokenizers.Tokenizer:
    folder = checkpoint_sources.checkpoint_folder("starter")
    return checked_tokenizer(folder, sizes)

  head = pooling_layers.Head()
  return Source("random", sizes, {}, head, True, backend, trees)


def _of_workdir(name: str, where: workdir_lib.Workdir) -> Source:
  """The trained towers of another workdir."""
  from dpr_jax.models import stored_towers  # which imports this module

  towers = stored_towers.trained(None, where, params=False)
  source = of_towers(name, towers)

  def trees() -> tuple[Any, Any]:
    return of_towers(name, stored_towers.trained(None, where)).trees()

  return dataclasses.replace(source, trees=trees)


def of_towers(name: str, towers: Any) -> Source:
  """The source that finished towers are.

  Args:
    name: what holds them, for messages.
    towers: a `retriever_model.Towers`.
  """

  def trees() -> tuple[Any, Any]:
    # By name: checkpoints store the towers in another order.
    first, *more = (towers.params[name] for name in towers.encoder.names)
    return first, more[0] if more else None

  return Source(
    name,
    towers.encoder.config,
    {key: towers.settings[key] for key in auto_settings.AUTO},
    towers.head,
    towers.encoder.shared,
    lambda: towers.tokenizer.backend,
    trees,
  )


def _checkpoint(
  name: str, tower: str | None = None
) -> checkpoint_layouts.Checkpoint:
  """Opens a checkpoint.

  Args:
    name: name of the checkpoint.
    tower: the only tower that is used; None = both.

  Raises:
    InputError: it is a workdir, or there is no such checkpoint.
  """
  if workdir_of(name) is not None:
    raise errors.InputError(
      f"config.model.{tower}_checkpoint={name!r} is a workdir, which has both"
      " towers: set config.model.checkpoint to it, or `dpr-jax export` it and"
      f" give its folder {tower}"
    )
  return checkpoint_layouts.open_(name, tower)


def _source(
  name: str, checkpoint: checkpoint_layouts.Checkpoint, names: tuple[str, str]
) -> Source:
  question, passage = checkpoint.question, checkpoint.passage
  single = checkpoint.shared
  heads = [head_of(files.use) for files in (question, passage)]
  _check_equal(question, passage, names)

  def backend() -> tokenizers.Tokenizer:
    first = checked_tokenizer(question.folder, question.config)
    if passage.folder != question.folder:
      second = checked_tokenizer(passage.folder, passage.config)
      if first.to_str() != second.to_str():
        raise errors.InputError(
          f"{question.folder} and {passage.folder} have different tokenizers:"
          " two towers need the same"
        )
    return first

  def trees() -> tuple[Any, Any]:
    logging.info("loading the pretrained model %s", name)
    return tree_of(question), None if single else tree_of(passage)

  return Source(
    name, question.config, _said(question, passage), heads[0], single, backend,
    trees,
  )  # fmt: skip


def _said(question: Any, passage: Any) -> dict[str, Any]:
  """What a checkpoint says, by the names of the settings."""
  said = {
    "pooling": question.use.pooling,
    "normalize": question.use.normalize,
    "title": passage.use.title,
    "question_prefix": question.use.prefix,
    "passage_prefix": passage.use.prefix,
    "question_length": question.use.length,
    "passage_length": passage.use.length,
  }
  return {key: value for key, value in said.items() if value is not None}


def head_of(use: checkpoint_layouts.Use) -> pooling_layers.Head:
  """Structure of what follows pooling."""
  layers = tuple(
    pooling_layers.DenseLayer(
      *map(int, layer.kernel.shape), layer.bias is not None, layer.activation
    )
    for layer in use.dense
  )
  return pooling_layers.Head(layers, use.pools_prefix)


def tree_of(files: checkpoint_layouts.TowerFiles) -> dict[str, Any]:
  """Parameters of a tower, its dense layers included."""
  tree = hf_weights.params_from_tensors(
    files.tensors(), files.config, str(files.folder)
  )
  for number, layer in enumerate(files.use.dense):
    params = {"kernel": np.asarray(layer.kernel, np.float32)}
    if layer.bias is not None:
      params["bias"] = np.asarray(layer.bias, np.float32)
    tree[pooling_layers.dense_name(number)] = params
  return tree


def _check_equal(question: Any, passage: Any, names: tuple[str, str]) -> None:
  """`InputError` unless two encoders can be the towers of one retriever."""
  if question is passage:
    return
  values = [_structure(files) for files in (question, passage)]
  differing = [
    f"{key} is {values[0][key]!r} and {values[1].get(key)!r}"
    for key in values[0]
    if values[0][key] != values[1].get(key)
  ]
  if not differing:
    return
  where = [
    name if names[0] != names[1] else f"{name} ({tower}s)"
    for name, tower in zip(names, ("question", "passage"), strict=True)
  ]
  raise errors.InputError(
    f"the encoders {where[0]} and {where[1]} cannot be two towers of one"
    f" retriever: {', '.join(differing[:4])}"
  )


def _structure(files: checkpoint_layouts.TowerFiles) -> dict[str, Any]:
  """What two towers must have in common, by name."""
  sizes = dataclasses.asdict(files.config)
  head = head_of(files.use)
  return {
    "model_type": files.config.model_type,
    **{key: value for key, value in sizes.items() if key not in _DROPOUT},
    "pooling": files.use.pooling,
    "normalize": files.use.normalize,
    "dense layers": [dataclasses.astuple(layer) for layer in head.dense],
    "pooling of the prefix": head.pools_prefix,
  }


def checked_tokenizer(
  folder: pathlib.Path, config: bert.BertConfig
) -> tokenizers.Tokenizer:
  """The tokenizer of a folder; `InputError` where it is another model's."""
  backend = tokenization.load_tokenizer(folder)
  if backend.get_vocab_size() > config.vocab_size:
    raise errors.InputError(
      f"{folder}: the tokenizer has {backend.get_vocab_size()} tokens, the"
      f" model {config.vocab_size}: they are not of the same checkpoint; copy"
      " both from one"
    )
  return backend


def prefix_tokens(backend: tokenizers.Tokenizer, prefix: str) -> int:
  """Number of tokens of [CLS] and a prefix, at the beginning of a text."""
  if not prefix:
    return 0
  encoding = backend.encode(prefix)
  # [SEP] at the end is not part of it.
  return len(encoding.ids) - bool(encoding.special_tokens_mask[-1])
