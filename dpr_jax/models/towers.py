"""A retriever as one thing: two towers, their parameters, their tokenizer.

`start` builds it from the config's pretrained checkpoint, as training begins;
`trained` loads what training left in a workdir; `from_folder` takes a finished
encoder as it is.  Training, embedding and search all get their model here.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tokenizers

from dpr_jax import configuration, errors, workdir
from dpr_jax.data import resources, tokenization
from dpr_jax.models import bert, checkpoints, dual_encoder, pretrained


@dataclasses.dataclass(frozen=True)
class Towers:
  """A dual encoder with everything that it needs to encode text.

  Attributes:
    encoder: the towers' structure.
    params: their parameters, on the host.
    tokenizer: text to token ids; None where nothing is to be encoded.
    step: training steps behind the parameters, 0 = as pretrained.
  """

  encoder: dual_encoder.DualEncoder
  params: Any
  tokenizer: tokenization.TextTokenizer | None
  step: int = 0

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of all that decides a vector: weights, structure, text format."""
    digest = hashlib.sha256()
    _update(digest, self.params)
    structure = (
      dataclasses.asdict(self.encoder.config),
      self.encoder.pooling,
      self.encoder.normalize,
      self.encoder.shared,
      self.tokenizer.text_format(),
      self.tokenizer.backend.to_str(),
    )
    digest.update(repr(structure).encode())
    return digest.hexdigest()


def _update(digest: Any, params: Any) -> None:
  """Adds names and bytes of all parameters to a hash."""
  for path, value in jax.tree.leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(value).tobytes())


def weights_digest(params: Any) -> str:
  """sha256 of all parameters."""
  digest = hashlib.sha256()
  _update(digest, params)
  return digest.hexdigest()


def compute_dtype(name: str) -> Any:
  """float32 or bfloat16; "auto" is bfloat16 on a TPU, float32 elsewhere."""
  configuration.one_of(
    "model.compute_dtype", name, ("auto", "float32", "bfloat16")
  )
  if name == "auto":
    name = "bfloat16" if jax.default_backend() == "tpu" else "float32"
  return jnp.dtype(name)


def attention(name: str) -> str:
  """How attention is computed, checked: see `bert.Bert`."""
  return configuration.one_of("model.attention", name, bert.ATTENTIONS)


def random_sizes(model: ml_collections.ConfigDict) -> bert.BertConfig:
  """Sizes of `config.model.checkpoint="random"`."""
  return bert.BertConfig(
    hidden_size=model.random_width,
    num_hidden_layers=model.random_layers,
    num_attention_heads=model.random_heads,
    intermediate_size=4 * model.random_width,
  )


def structure(
  model: ml_collections.ConfigDict, bert_config: bert.BertConfig
) -> dual_encoder.DualEncoder:
  """The towers of `config.model`, for a checkpoint of these sizes.

  Raises:
    InputError: texts would be longer than the checkpoint knows positions.
  """
  bert_config = with_dropout(bert_config, model.dropout)
  for name in ("question_length", "passage_length"):
    if model[name] > bert_config.max_position_embeddings:
      raise errors.InputError(
        f"config.model.{name}={model[name]}: checkpoint {model.checkpoint} has"
        f" {bert_config.max_position_embeddings} positions"
      )
  return dual_encoder.DualEncoder(
    bert_config,
    pooling=model.pooling,
    normalize=model.normalize,
    shared=model.shared_towers,
    dtype=compute_dtype(model.compute_dtype),
    attention=attention(model.attention),
  )


def start(config: ml_collections.ConfigDict) -> Towers:
  """The towers before training, as `config.model` describes them."""
  model = config.model
  folder, bert_config, tower = load_base(config, model.checkpoint)
  encoder = structure(model, bert_config)
  backend = checked_tokenizer(folder, bert_config)
  tokenizer = tokenization.TextTokenizer(
    backend,
    question_length=model.question_length,
    passage_length=model.passage_length,
    title=model.title,
    question_prefix=model.question_prefix,
    passage_prefix=model.passage_prefix,
  )
  return Towers(encoder, encoder.towers(tower), tokenizer)


def load_base(
  config: ml_collections.ConfigDict, checkpoint: str
) -> tuple[pathlib.Path, bert.BertConfig, Any]:
  """Folder (for the tokenizer), sizes and parameters of a pretrained BERT.

  Args:
    config: `config.model` has the sizes of "random".
    checkpoint: as `config.model.checkpoint`.
  """
  if checkpoint != "random":
    folder = resources.checkpoint_folder(checkpoint)
    return folder, *pretrained.load_bert(folder)
  folder = resources.checkpoint_folder("starter")
  bert_config = random_sizes(config.model)
  tower = bert.init_params(bert_config, jax.random.key(config.seed))
  return folder, bert_config, jax.tree.map(np.asarray, tower)


def with_dropout(config: bert.BertConfig, rate: float) -> bert.BertConfig:
  """One dropout rate everywhere; negative = as the checkpoint says."""
  if rate < 0:
    return config
  return dataclasses.replace(
    config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
  )


def checked_tokenizer(
  folder: pathlib.Path, config: bert.BertConfig
) -> tokenizers.Tokenizer:
  """The tokenizer of a folder; `InputError` where it is another model's."""
  backend = tokenization.load_tokenizer(folder)
  if backend.get_vocab_size() > config.vocab_size:
    raise errors.InputError(
      f"{folder}: the tokenizer knows {backend.get_vocab_size()} tokens, the"
      f" model {config.vocab_size}: they do not belong together"
    )
  return backend


def from_folder(folder: str | os.PathLike) -> Towers:
  """One encoder for both kinds of text, from a Hugging Face folder.

  In a Sentence-Transformers folder (`modules.json`), pooling, normalisation and
  the longest text are what it says, and a title is joined to its text; in any
  other, they are DPR's.

  Raises:
    InputError: the folder is not whole, or pools in another way.
  """
  folder = pathlib.Path(folder)
  bert_config, tower = pretrained.load_bert(folder)
  length = min(256, bert_config.max_position_embeddings)
  pooling, normalize, title = "cls", False, "pair"
  if (folder / "modules.json").exists():
    modules = workdir.read_json(folder / "modules.json")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if "Pooling" not in kinds:
      raise errors.InputError(
        f"{folder / 'modules.json'}: no Pooling among {', '.join(kinds)}: this"
        " is not an encoder of one vector per text"
      )
    pooling = _pooling(folder / modules[kinds.index("Pooling")]["path"])
    normalize, title = "Normalize" in kinds, "joined"
    settings = folder / "sentence_bert_config.json"
    if settings.exists():
      longest = workdir.read_json(settings).get("max_seq_length")
      length = min(longest or length, bert_config.max_position_embeddings)
  encoder = dual_encoder.DualEncoder(
    bert_config,
    pooling=pooling,
    normalize=normalize,
    shared=True,
    dtype=compute_dtype("auto"),
  )
  tokenizer = tokenization.TextTokenizer(
    tokenization.load_tokenizer(folder),
    question_length=length,
    passage_length=length,
    title=title,
  )
  return Towers(encoder, encoder.towers(tower), tokenizer)


def _pooling(folder: pathlib.Path) -> str:
  """Pooling of a Sentence-Transformers folder, by either of its spellings."""
  settings = workdir.read_json(folder / "config.json")
  modes = [
    key.removeprefix("pooling_mode_")
    for key, value in settings.items()
    if key.startswith("pooling_mode_") and value is True
  ] or [settings.get("pooling_mode")]
  names = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
  }
  if len(modes) != 1 or modes[0] not in names:
    raise errors.InputError(
      f"{folder / 'config.json'}: pooling by {modes}: only cls and mean are"
      " supported"
    )
  return names[modes[0]]


def trained(
  config: ml_collections.ConfigDict, where: workdir.Workdir
) -> Towers:
  """The towers that training left in a workdir, of the newest checkpoint."""
  model = start(config)
  step, params = checkpoints.load_params(where.training / "checkpoints")
  wanted = jax.tree.map(np.shape, model.params)
  if jax.tree.map(np.shape, params) != wanted:
    raise errors.InputError(
      f"{where.training / 'checkpoints' / str(step)} holds towers of other"
      " sizes than config.model describes: use the config that it was trained"
      " with"
    )
  return dataclasses.replace(model, params=params, step=step)
