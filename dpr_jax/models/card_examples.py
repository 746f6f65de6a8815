"""The examples in a model card: how to use an export in three libraries.

A test runs them as they stand in the card.
"""

import json
from collections.abc import Mapping

from dpr_jax.models import (
  export_parts,
  export_sentence_transformers,
  retriever_model,
)

_QUESTION = "Where is Ulm?"
_TITLE, _TEXT = "Ulm", "Ulm is a city on the Danube."


def title_note(model: retriever_model.Towers) -> str:
  """How a title is joined to its text, in words."""
  title = model.tokenizer.title
  if title == "none":
    return "not used"
  return f"`{joined(model, 'title', 'text')}`; without a title `text`"


def joined(model: retriever_model.Towers, title: str, text: str) -> str:
  """One text of a title and a text that gets the same token ids as the two."""
  form = model.tokenizer.title
  if form == "none":
    return text
  return f"{title}{_between(model) if form == 'pair' else ' '}{text}"


def _between(model: retriever_model.Towers) -> str:
  """What stands for the separator of a pair, with the spaces it needs."""
  backend, special = model.tokenizer.backend, model.tokenizer.special
  tokens = "".join(backend.id_to_token(number) for number in special.between)
  pair = backend.encode(_TITLE, _TEXT).ids
  for between in (f" {tokens} ", tokens, f"{tokens} "):
    if backend.encode(f"{_TITLE}{between}{_TEXT}").ids == pair:
      return between
  return f" {tokens} "


def examples(
  model: retriever_model.Towers,
  form: str,
  towers: Mapping[str, str],
  name: str,
) -> list[str]:
  """Headings and code, in order.

  Args:
    model: the exported towers.
    form: format of the export.
    towers: folders by kind of text.
    name: the repository, OWNER/NAME, or the name of the folder.
  """
  parts = []
  if form != "onnx":
    parts += ["### dpr-jax", _code(_ours(name))]
  if form in ("sentence-transformers", "onnx"):
    note = _lengths_note(model)
    parts += ["### Sentence-Transformers", *note]
    parts += [_code(_sentence_transformers(model, form, name))]
  if form == "onnx":
    parts += ["### ONNX Runtime", _code(_runtime(model, towers, name))]
    return parts
  parts.append("### Transformers")
  if form == "dpr":
    parts.append(_code(_dpr(model, towers, name)))
  elif pool := _pool(model):
    parts.append(_code(_transformers(model, towers, name, pool)))
  else:
    parts.append(
      "The pooling needs more than a line of code: use one of the libraries"
      " above."
    )
  if form == "hf" and model.encoder.pooling in (
    export_sentence_transformers.POOLINGS
  ):
    parts += ["### Sentence-Transformers", _code(_modules(model, towers, name))]
  if form == "tevatron":
    parts += ["### Tevatron", *_tevatron(model, name)]
  return parts


def _code(lines: str) -> str:
  return f"```python\n{lines.strip()}\n```"


def _quoted(text: str) -> str:
  """A string of Python, in double quotation marks."""
  return json.dumps(text, ensure_ascii=False)


def _ours(name: str) -> str:
  address = f"hf:{name}" if "/" in name else name
  return f"""
from dpr_jax import Encoder

encoder = Encoder.load({_quoted(address)})
questions = encoder.encode_questions([{_quoted(_QUESTION)}])
passages = encoder.encode_passages([({_quoted(_TITLE)}, {_quoted(_TEXT)})])
print(questions @ passages.T)
"""


def _sentence_transformers(
  model: retriever_model.Towers, form: str, name: str
) -> str:
  more = ', backend="onnx"' if form == "onnx" else ""
  return f"""
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({_quoted(name)}{more})
questions = model.encode_query([{_quoted(_QUESTION)}])
passages = model.encode_document([{_quoted(joined(model, _TITLE, _TEXT))}])
print(model.similarity(questions, passages))
"""


def _lengths_note(model: retriever_model.Towers) -> list[str]:
  """Where one length cannot serve both kinds of text."""
  tokenizer = model.tokenizer
  questions, passages = tokenizer.question_length, tokenizer.passage_length
  if not model.encoder.shared or questions == passages:
    return []
  return [
    f"Questions were trained with at most {questions} tokens. This library has"
    f" one length for both, {passages}: for the same vectors of longer"
    f" questions, set `model.max_seq_length = {questions}` before."
  ]


def _texts(model: retriever_model.Towers) -> tuple[str, str]:
  """The example's question and passage with their prefixes."""
  tokenizer = model.tokenizer
  return (
    tokenizer.question_prefix + _QUESTION,
    tokenizer.passage_prefix + joined(model, _TITLE, _TEXT),
  )


def _pool(model: retriever_model.Towers) -> str:
  """Lines of PyTorch from `hidden` to `vectors`; "" = it takes too many."""
  lines = {
    "cls": ["vectors = hidden[:, 0]"],
    "mean": [
      'mask = batch["attention_mask"][:, :, None]',
      "vectors = (hidden * mask).sum(1) / mask.sum(1)",
    ],
    "max": [
      'mask = batch["attention_mask"][:, :, None]',
      "vectors = hidden.masked_fill(mask == 0, -1e9).amax(1)",
    ],
  }.get(model.encoder.pooling, [])
  encoder = model.encoder
  if not lines or encoder.dense or encoder.question_skip + encoder.passage_skip:
    return ""
  if encoder.normalize:
    lines.append("vectors = torch.nn.functional.normalize(vectors, dim=-1)")
  return "\n".join(f"  {line}" for line in lines)


def _transformers(
  model: retriever_model.Towers,
  towers: Mapping[str, str],
  name: str,
  pool: str,
) -> str:
  question, passage = _texts(model)
  folders = [towers[kind] for kind in export_parts.KINDS]
  lengths = [export_parts.length(model, kind) for kind in export_parts.KINDS]
  return f"""
import torch
from transformers import AutoModel, AutoTokenizer


def encode(folder, texts, length):
  tokenizer = AutoTokenizer.from_pretrained({_quoted(name)}, subfolder=folder)
  model = AutoModel.from_pretrained({_quoted(name)}, subfolder=folder)
  batch = tokenizer(
    texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
  )
  with torch.no_grad():
    hidden = model(**batch).last_hidden_state
{pool}
  return vectors


questions = encode({_quoted(folders[0])}, [{_quoted(question)}], {lengths[0]})
passages = encode(
  {_quoted(folders[1])}, [{_quoted(passage)}], {lengths[1]}
)
print(questions @ passages.T)
"""


def _dpr(
  model: retriever_model.Towers, towers: Mapping[str, str], name: str
) -> str:
  question, passage = _texts(model)
  folders = [towers[kind] for kind in export_parts.KINDS]
  lengths = [export_parts.length(model, kind) for kind in export_parts.KINDS]
  return f"""
import torch
from transformers import AutoTokenizer, DPRContextEncoder, DPRQuestionEncoder


def encode(kind, folder, texts, length):
  tokenizer = AutoTokenizer.from_pretrained({_quoted(name)}, subfolder=folder)
  model = kind.from_pretrained({_quoted(name)}, subfolder=folder)
  batch = tokenizer(
    texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
  )
  with torch.no_grad():
    return model(**batch).pooler_output


questions = encode(
  DPRQuestionEncoder, {_quoted(folders[0])}, [{_quoted(question)}], {lengths[0]}
)
passages = encode(
  DPRContextEncoder, {_quoted(folders[1])}, [{_quoted(passage)}], {lengths[1]}
)
print(questions @ passages.T)
"""


def _modules(
  model: retriever_model.Towers, towers: Mapping[str, str], name: str
) -> str:
  """Sentence-Transformers around the plain encoders of `hf`."""
  question, passage = _texts(model)
  folder = _local(name)
  lengths = [export_parts.length(model, kind) for kind in export_parts.KINDS]
  paths = [
    f'f"{{folder}}/{towers[kind]}"' if towers[kind] else "folder"
    for kind in export_parts.KINDS
  ]
  normal = ", Normalize()" if model.encoder.normalize else ""
  names = "Normalize, Pooling" if model.encoder.normalize else "Pooling"
  width = model.encoder.config.hidden_size
  return f"""
{folder[0]}from sentence_transformers import SentenceTransformer
from sentence_transformers.models import {names}, Transformer

{folder[1]}

def load(path, length):
  pooling = Pooling({width}, {_quoted(model.encoder.pooling)})
  encoder = Transformer(path, max_seq_length=length)
  return SentenceTransformer(modules=[encoder, pooling{normal}])


questions = load({paths[0]}, {lengths[0]}).encode([{_quoted(question)}])
passages = load({paths[1]}, {lengths[1]}).encode([{_quoted(passage)}])
print(questions @ passages.T)
"""


def _local(name: str) -> tuple[str, str]:
  """An import, and a line that sets `folder`, downloaded from the hub."""
  if "/" not in name:
    return "", f"folder = {_quoted(name)}\n"
  imported = "from huggingface_hub import snapshot_download\n"
  return imported, f"folder = snapshot_download({_quoted(name)})\n"


def _runtime(
  model: retriever_model.Towers, towers: Mapping[str, str], name: str
) -> str:
  question, passage = _texts(model)
  folder = _local(name)
  lengths = [export_parts.length(model, kind) for kind in export_parts.KINDS]
  paths = [
    f'f"{{folder}}/{towers[kind]}"' if towers[kind] else "folder"
    for kind in export_parts.KINDS
  ]
  return f"""
{folder[0]}import numpy as np
import onnxruntime
from tokenizers import Tokenizer

{folder[1]}

def encode(path, texts, length):
  tokenizer = Tokenizer.from_file(f"{{path}}/tokenizer.json")
  tokenizer.enable_truncation(length)
  tokenizer.enable_padding()
  rows = tokenizer.encode_batch(texts)
  ids = np.array([row.ids for row in rows])
  batch = {{
    "input_ids": ids,
    "attention_mask": np.array([row.attention_mask for row in rows]),
    "token_type_ids": np.zeros_like(ids),
  }}
  session = onnxruntime.InferenceSession(f"{{path}}/onnx/model.onnx")
  return session.run(["sentence_embedding"], batch)[0]


questions = encode({paths[0]}, [{_quoted(question)}], {lengths[0]})
passages = encode(
  {paths[1]}, [{_quoted(passage)}], {lengths[1]}
)
print(questions @ passages.T)
"""


def _tevatron(model: retriever_model.Towers, name: str) -> list[str]:
  """Flags, in place of code: Tevatron is used from the command line."""
  tokenizer = model.tokenizer
  flags = [
    f"--model_name_or_path {name}",
    f"--q_max_len {tokenizer.question_length}",
    f"--p_max_len {tokenizer.passage_length}",
  ]
  if tokenizer.title == "pair":
    flags.append("--passage_field_separator sep_token")
  if model.encoder.pooling != "cls":
    flags.append(f"--pooling {model.encoder.pooling}")
  if model.encoder.normalize:
    flags.append("--normalize")
  text = f"Flags of its `encode`: `{' '.join(flags)}`."
  return [text]
