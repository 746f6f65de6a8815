"""Reads the files of Sentence-Transformers: modules, prompts and lengths.

Input: a folder with `modules.json`, as any version from 0.4 to 6 writes it.
Output: the question tower and the passage tower.  A module is known by the last
part of its type (`sentence_transformers.models.Pooling`), because its module
has moved between versions.  A `Router` (once `Asym`) has a list of modules for
each kind of text.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import bert, config_json, tensor_files, tower_files

MODULES = "modules.json"
_PACKAGE = "sentence_transformers."
_SUPPORTED = ("Transformer", "Pooling", "Dense", "Normalize", "Router")
_ROUTERS = ("Router", "Asym")
# Names of tasks, of routes and of prompts, the first that is there.
_NAMES = {
  "question": ("query", "question"),
  "passage": ("document", "passage", "corpus"),
}
# Value of `pooling_mode`, or the key of the older layout, and our name.
_POOLINGS = {
  "cls": "cls",
  "pooling_mode_cls_token": "cls",
  "mean": "mean",
  "pooling_mode_mean_tokens": "mean",
  "max": "max",
  "pooling_mode_max_tokens": "max",
  "mean_sqrt_len_tokens": "mean_sqrt_len",
  "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
  "weightedmean": "weightedmean",
  "pooling_mode_weightedmean_tokens": "weightedmean",
  "lasttoken": "lasttoken",
  "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {
  "torch.nn.modules.activation.Tanh": "tanh",
  "torch.nn.modules.linear.Identity": "identity",
}
# Values of settings of modules that change the vectors; others are refused.
_DENSE_VALUES = {
  "module_input_name": "sentence_embedding",
  "module_output_name": "sentence_embedding",
  "use_residual": False,
}
_TRANSFORMER_VALUES = {
  "transformer_task": "feature-extraction",
  "module_output_name": "token_embeddings",
}
_SETTINGS = tuple(
  f"sentence_{kind}_config.json"
  for kind in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta")
)


@dataclasses.dataclass(frozen=True)
class _Module:
  """A module of an encoder: its kind and its folder."""

  kind: str
  folder: pathlib.Path


def read(root: pathlib.Path) -> dict[str, tower_files.TowerFiles]:
  """The towers of a folder with `modules.json`: "question" and "passage".

  Raises:
    InputError: a module or a setting is not supported, or a file is damaged.
  """
  prompts = _prompts(root)
  parts: dict[_Module, Any] = {}  # modules that towers share are read once
  towers = {}
  for tower, names in _NAMES.items():
    modules = list(_modules(root, names))
    files = _tower(root / MODULES, modules, parts)
    use = dataclasses.replace(files.use, prefix=prompts[tower])
    towers[tower] = dataclasses.replace(files, use=use)
  return towers


def _modules(root: pathlib.Path, names: tuple[str, ...]) -> Iterator[_Module]:
  """The modules that a text of one kind passes, in order."""
  path = root / MODULES
  rows = workdir_lib.read_json(path)
  if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
    raise errors.InputError(f"{path} is not a list of modules")
  for row in rows:
    folder = _inside(path, root, row.get("path"))
    kind = _kind(path, row.get("type"))
    if kind == "Router":
      yield from _route(folder, names)
    else:
      yield _Module(kind, folder)


def _route(folder: pathlib.Path, names: tuple[str, ...]) -> Iterator[_Module]:
  """The modules of a router for texts of one kind."""
  path = folder / "router_config.json"
  if not path.exists():
    path = folder / "config.json"  # as Asym wrote it
  config = config_json.read(path)
  structure, types = config.get("structure"), config.get("types")
  parameters = config.get("parameters") or {}
  if not all(isinstance(x, dict) for x in (structure, types, parameters)):
    raise errors.InputError(
      f"{path}: structure, types and parameters must be JSON objects"
    )
  mappings = parameters.get("route_mappings") or {}
  routes = [
    *(mappings.get(f"({n!r}, {kind})") for n in names for kind in _TEXT),
    *names,
    parameters.get("default_route"),
  ]
  route = next((r for r in routes if r in structure), None)
  modules = structure.get(route)
  if not isinstance(modules, list) or not all(m in types for m in modules):
    raise errors.InputError(
      f"{path}: no route for a {names[0]!r} among {', '.join(structure)}: a"
      f" retriever needs {names[0]!r}, or a default_route"
    )
  for name in modules:
    yield _Module(_kind(path, types[name]), _inside(path, folder, name))


_TEXT = ("'text'", "None")  # how a route mapping names the kind of input


def _inside(path: pathlib.Path, root: pathlib.Path, name: Any) -> pathlib.Path:
  """A subfolder that a file names, which must lie below `root`."""
  if (
    not isinstance(name, str)
    or pathlib.PurePath(name).is_absolute()
    or ".." in pathlib.PurePath(name).parts
  ):
    raise errors.InputError(
      f"{path}: {str(name)[:80]!r} is not a folder inside of {root}"
    )
  return root / name


def _kind(path: pathlib.Path, name: Any) -> str:
  """The supported kind of a module's type."""
  kind = str(name).rpartition(".")[2]
  kind = "Router" if kind in _ROUTERS else kind
  if not str(name).startswith(_PACKAGE) or kind not in _SUPPORTED:
    raise errors.InputError(
      f"{path}: the module {str(name)[:80]!r} is not supported; an encoder may"
      f" have {', '.join(_SUPPORTED)}, of Sentence-Transformers itself"
    )
  return kind


def _tower(
  path: pathlib.Path, modules: list[_Module], parts: dict[_Module, Any]
) -> tower_files.TowerFiles:
  """A tower from the modules that its texts pass."""
  kinds = [module.kind for module in modules]
  dense = kinds.count("Dense")
  normalize = "Normalize" in kinds
  order = ["Transformer", "Pooling", *["Dense"] * dense]
  if kinds != order + ["Normalize"] * normalize:
    raise errors.InputError(
      f"{path}: modules in the order {', '.join(kinds)}: an encoder of one"
      " vector per text has Transformer, Pooling, then any Dense, then perhaps"
      " Normalize"
    )
  readers = {"Transformer": _transformer, "Pooling": _pooling, "Dense": _dense}
  for module in modules:
    if module not in parts and module.kind in readers:
      parts[module] = readers[module.kind](module.folder)
  base = parts[modules[0]]
  pooling, pools_prefix = parts[modules[1]]
  use = tower_files.Use(
    pooling=pooling,
    normalize=normalize,
    dense=tuple(parts[module] for module in modules[2 : 2 + dense]),
    length=base.use.length,
    pools_prefix=pools_prefix,
    title="joined",
  )
  _check_widths(path, base.config.hidden_size, use.dense)
  return dataclasses.replace(base, use=use)


def _check_widths(
  path: pathlib.Path, width: int, dense: tuple[tower_files.Dense, ...]
) -> None:
  for number, layer in enumerate(dense):
    inputs, outputs = layer.kernel.shape
    if inputs != width:
      raise errors.InputError(
        f"{path}: Dense {number + 1} takes vectors of {inputs}, and gets"
        f" vectors of {width}: its files are of another model; copy the folder"
        " again"
      )
    width = outputs


def _transformer(folder: pathlib.Path) -> tower_files.TowerFiles:
  config = bert.BertConfig.read(folder)
  settings: dict[str, Any] = {}
  for name in _SETTINGS:
    if (path := folder / name).exists():
      settings = config_json.read(path)
      _check_values(path, settings, _TRANSFORMER_VALUES)
      break
  length = settings.get("max_seq_length")
  if length is None:
    length = tokenizer_length(folder)
  elif type(length) is not int or length < 1:
    raise errors.InputError(
      f"{path}: max_seq_length is {str(length)[:40]!r}, not a number of tokens"
    )
  return tower_files.TowerFiles(
    folder,
    config,
    tensor_files.lazily(folder),
    tower_files.Use(length=longest(length, config)),
    tensor_files.heads_among(tensor_files.tensor_names(folder)),
  )


def longest(length: int | None, config: bert.BertConfig) -> int:
  """Tokens of the longest text of an encoder that has so many positions."""
  positions = config.max_position_embeddings
  return positions if length is None else min(length, positions)


def tokenizer_length(folder: pathlib.Path) -> int | None:
  """`model_max_length` of the tokenizer; None where it has none."""
  path = folder / "tokenizer_config.json"
  if not path.exists():
    return None
  length = config_json.read(path).get("model_max_length")
  # Where there is no limit, transformers writes 1e30.
  return int(length) if isinstance(length, int) and length >= 1 else None


def _check_values(
  path: pathlib.Path, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
  for key, value in expected.items():
    if settings.get(key, value) != value and settings[key] is not None:
      raise errors.InputError(
        f"{path}: {key} is {str(settings[key])[:80]!r}: only {value!r} is"
        " supported"
      )


def _pooling(folder: pathlib.Path) -> tuple[str, bool]:
  """Pooling, and whether the tokens of the prompt are pooled too."""
  path = folder / "config.json"
  settings = config_json.read(path)
  modes = settings.get("pooling_mode")
  if modes is None:
    modes = [key for key in settings if settings[key] is True]
    modes = [key for key in modes if key.startswith("pooling_mode_")]
  modes = [modes] if isinstance(modes, str) else modes or ["mean"]
  if len(modes) != 1 or modes[0] not in _POOLINGS:
    raise errors.InputError(
      f"{path}: pooling by {' and '.join(map(str, modes))[:200]}: it must be"
      f" one of {', '.join(sorted(set(_POOLINGS.values())))}"
    )
  return _POOLINGS[modes[0]], settings.get("include_prompt", True) is not False


def _dense(folder: pathlib.Path) -> tower_files.Dense:
  path = folder / "config.json"
  settings = config_json.read(path)
  _check_values(path, settings, _DENSE_VALUES)
  name = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
  if name not in _ACTIVATIONS:
    raise errors.InputError(
      f"{path}: activation_function {str(name)[:80]!r}: only Tanh and Identity"
      " are supported"
    )
  tensors = tensor_files.read_tensors(folder)
  return tower_files.Dense.of_linear(
    path,
    tensors.get("linear.weight"),
    tensors.get("linear.bias"),
    _ACTIVATIONS[name],
  )


def _prompts(root: pathlib.Path) -> dict[str, str | None]:
  """The prompt of each tower; None where the files name no prompts.

  `encode_query` takes the prompt "query", `encode_document` one of three names.
  Files of libraries before version 5 may lack both and name a default.
  """
  path = root / "config_sentence_transformers.json"
  config = config_json.read(path) if path.exists() else {}
  prompts = config.get("prompts") or {}
  default = config.get("default_prompt_name")
  if not isinstance(prompts, dict) or not all(
    text is None or isinstance(text, str) for text in prompts.values()
  ):
    raise errors.InputError(f"{path}: prompts must map names to texts")
  known = {name for names in _NAMES.values() for name in names}
  if prompts.keys().isdisjoint(known) and default in prompts:
    return dict.fromkeys(_NAMES, prompts[default])
  return {
    tower: next((prompts[n] for n in names if prompts.get(n)), None)
    for tower, names in _NAMES.items()
  }
