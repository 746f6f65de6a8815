"""The model card of an export: `README.md` with the hub's metadata.

What is said comes from the workdir and from the card of the base model;
what they do not say is left out.  The examples are in `card_examples.py`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub
from absl import logging

from dpr_jax import version
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import (
  card_examples,
  checkpoint_sources,
  export_parts,
  retriever_model,
)

FILE = "README.md"
_ROLES = {
  "passages": "corpus",
  "train": "training questions",
  "dev": "dev questions",
}
_UNITS = {"passages": "passages", "train": "questions", "dev": "questions"}


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """What `evaluate` has measured of the exported model on one question set.

  Attributes:
    name: name of the set in the workdir.
    source: name of the file with its questions; "" = not recorded.
    questions: number of questions; 0 = not recorded.
    values: shares from 0 to 1 by measure, as in `evaluation/<name>.json`.
  """

  name: str
  source: str
  questions: int
  values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _Base:
  """The checkpoint that training started from.

  Attributes:
    name: its id on the hub; "" = it has none that is known.
    shown: what to call it.
    card: metadata of its own card; {} = it has none.
  """

  name: str
  shown: str
  card: Mapping[str, Any]


def write(card: huggingface_hub.ModelCard, folder: pathlib.Path) -> None:
  """Writes the card; `InputError` if its metadata cannot be read back."""
  text = str(card)
  again = huggingface_hub.ModelCard(text)
  if again.data.to_dict() != card.data.to_dict():
    raise errors.InputError(
      f"{folder / FILE}: the card's metadata changes when it is read again:"
      f" {again.data.to_dict()}"
    )
  with workdir_lib.replace_file(folder / FILE) as temporary:
    temporary.write_text(text, encoding="utf-8")


def of_workdir(
  model: retriever_model.Towers,
  where: workdir_lib.Workdir,
  section: Any,
  form: str,
  towers: Mapping[str, str],
  name: str,
  evaluated: Sequence[Evaluated] = (),
) -> huggingface_hub.ModelCard:
  """The card of an export.

  Args:
    model: the exported towers.
    where: their workdir.
    section: section `model` of the config.
    form: format of the export.
    towers: folders by kind of text.
    name: the repository, OWNER/NAME, or the name of the folder.
    evaluated: what `evaluate` has measured of these towers.
  """
  base = _base_of(section)
  data = _metadata(base, form, name, evaluated)
  parts = [
    f"# {name.rpartition('/')[2]}",
    _summary(model, base),
    _settings(model),
    "## How to use",
    *card_examples.examples(model, form, towers, name),
    *_training_data(where, model.step > 0),
    *_measures(evaluated),
    *_licence(base),
  ]
  body = "\n\n".join(part.strip("\n") for part in parts)
  return huggingface_hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _base_of(section: Any) -> _Base:
  """The checkpoint, or the pair of checkpoints, of a section `model`."""
  pair = (section.question_checkpoint, section.passage_checkpoint)
  if not any(pair):
    return _base(section.checkpoint)
  first, second = map(_base, pair)
  return _Base("", f"{first.shown} and {second.shown}", {})


def _base(checkpoint: str) -> _Base:
  """What is known of a checkpoint on this machine; nothing is downloaded."""
  if checkpoint == "random":
    return _Base("", "random weights", {})
  hub, _, _ = checkpoint.removeprefix("hf:").partition("@")
  on_hub = checkpoint.startswith("hf:")
  try:
    if on_hub:
      cached = huggingface_hub.try_to_load_from_cache(hub, FILE)
      path = pathlib.Path(cached) if isinstance(cached, str) else None
    elif checkpoint == "starter":
      path = checkpoint_sources.starter_cache() / FILE
    else:
      path = pathlib.Path(checkpoint) / FILE
    card: Mapping[str, Any] = {}
    if path is not None and path.is_file():
      loaded = huggingface_hub.ModelCard.load(path, ignore_metadata_errors=True)
      card = loaded.data.to_dict()
  # The card is somebody else's: errors of YAML, of the disk, any.
  except Exception as error:
    logging.warning("export: the base model's card is not used: %s", error)
    card = {}
  if on_hub:
    return _Base(hub, f"`{hub}`", card)
  if checkpoint == "starter":
    hub = checkpoint_sources.STARTER_HUB_NAME
    package = checkpoint_sources.STARTER.project
    return _Base(hub, f"`{hub}` (from the package `{package}`)", card)
  # A folder of this machine: its path is nobody else's business.
  return _Base(
    "", f"a local checkpoint, `{pathlib.Path(checkpoint).name}`", card
  )


def _metadata(
  base: _Base, form: str, name: str, evaluated: Sequence[Evaluated]
) -> huggingface_hub.ModelCardData:
  sentence = form in ("sentence-transformers", "onnx")
  library = "sentence-transformers" if sentence else "transformers"
  tags = ["dpr-jax", "dense-passage-retrieval", "feature-extraction"]
  if sentence:
    tags.append("sentence-transformers")
  if form == "onnx":
    tags.append("onnx")
  licence = base.card.get("license")
  extra = {
    key: base.card[key]
    for key in ("license_name", "license_link")
    if licence and base.card.get(key)
  }
  results = [
    huggingface_hub.EvalResult(
      task_type="information-retrieval",
      dataset_type=(each.source or each.name),
      dataset_name=each.name,
      metric_type=measure,
      metric_name=_measure_name(measure),
      metric_value=round(float(value), 6),
    )
    for each in evaluated
    for measure, value in each.values.items()
  ]
  return huggingface_hub.ModelCardData(
    language=base.card.get("language"),
    license=licence,
    library_name=library,
    tags=tags,
    base_model=base.name or None,
    pipeline_tag="sentence-similarity" if sentence else "feature-extraction",
    model_name=name.rpartition("/")[2] if results else None,
    eval_results=results or None,
    **extra,
  )


def _summary(model: retriever_model.Towers, base: _Base) -> str:
  encoder = model.encoder
  towers = "Two encoders, of questions and of passages,"
  if encoder.shared:
    towers = "One encoder, of questions and passages,"
  made = f"trained for {model.step:,} steps" if model.step else "not trained"
  vectors = "Vectors are compared by their inner product."
  if encoder.normalize:
    vectors = "Vectors have length 1 and are compared by their cosine."
  return (
    f"{towers} for dense passage retrieval, {made} with dpr-jax"
    f" {version.__version__}, from {base.shown}. {vectors}"
  )


def _settings(model: retriever_model.Towers) -> str:
  """How texts become vectors, as a table."""
  encoder = model.encoder
  sizes = encoder.config
  rows = [
    ("dimension of a vector", encoder.dim),
    ("layers, width", f"{sizes.num_hidden_layers}, {sizes.hidden_size}"),
    ("pooling", encoder.pooling),
    ("normalised", "yes" if encoder.normalize else "no"),
  ]
  for kind in export_parts.KINDS:
    text = f"at most {export_parts.length(model, kind)} tokens"
    if prefix := export_parts.prefix(model, kind):
      text += f", after the prefix `{prefix}`"
    rows.append((f"{kind}s", text))
  rows.append(("title of a passage", card_examples.title_note(model)))
  table = [f"| {name} | {value} |" for name, value in rows]
  return "\n".join(["| | |", "|---|---|", *table])


def _training_data(where: workdir_lib.Workdir, trained: bool) -> list[str]:
  """The files that `prepare` read; [] if it is not known."""
  manifest = where.data / workdir_lib.MANIFEST
  if not manifest.exists():
    return []
  record = workdir_lib.read_record(manifest)
  named = record.get("config", {}).get("data", {})
  rows = []
  for role, shown in _ROLES.items():
    if role == "train" and not trained:
      continue
    source, sha256 = named.get(role, ""), record.get("inputs", {}).get(role)
    if not source or source == "none" or not sha256:
      continue
    count = record.get("counts", {}).get(role)
    size = "" if count is None else f"{count:,} {_UNITS[role]}"
    rows.append(f"| {shown} | `{source_name(source)}` | {size} | `{sha256}` |")
  if not rows:
    return []
  head = ["| | file | kept | sha256 of the input |", "|---|---|---|---|"]
  return ["## Data", "\n".join([*head, *rows])]


def source_name(source: Any) -> str:
  """What to call files of data: their names, without the folders above."""
  if isinstance(source, list | tuple):
    return ", ".join(map(source_name, source))
  if source == "sample":
    return "sample of dpr-jax"
  return pathlib.PurePath(source).name


def _measures(evaluated: Sequence[Evaluated]) -> list[str]:
  rows = [
    f"| {each.name}{f' (`{each.source}`)' if each.source else ''}"
    f" | {each.questions or ''} | {_measure_name(measure)} | {value:.4f} |"
    for each in evaluated
    for measure, value in each.values.items()
  ]
  if not rows:
    return []
  head = ["| questions | number | measure | value |", "|---|---|---|---|"]
  text = "Measured by `dpr-jax evaluate` on the corpus above."
  return ["## Measures", text, "\n".join([*head, *rows])]


def _measure_name(measure: str) -> str:
  """A measure in words: "gold_top20" = a positive passage in the first 20."""
  gold = measure.startswith("gold_top")
  depth = measure.removeprefix("gold_").removeprefix("top")
  if depth.isdigit():
    what = "a gold passage" if gold else "an answer"
    return f"top-{depth} accuracy ({what} in the first {depth})"
  return measure


def _licence(base: _Base) -> list[str]:
  licence = base.card.get("license")
  if not licence:
    return []
  return [
    "## Licence",
    f"The base model's card says `{licence}`. The licences of the data apply to"
    " what was learned from it.",
  ]
