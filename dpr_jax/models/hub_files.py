"""Which files of a repository on the Hugging Face hub are those of a model.

A repository may hold the same weights several times, in formats that we do not
read (ONNX, TensorFlow, OpenVINO) and for other uses.  Only what
`checkpoint_layouts` reads is downloaded; `*` in a pattern also matches "/".
"""

import fnmatch
import pathlib

_TOKENIZER = (
  *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.json"),
  *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
  *("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "bpe.codes"),
)
_MODEL = ("config.json", "dpr_jax.json", "sentence_*_config.json", *_TOKENIZER)
_SAFETENSORS = (
  *("model.safetensors", "model-*-of-*.safetensors"),
  "model.safetensors.index.json",
)
_TORCH = (
  *("pytorch_model.bin", "pytorch_model-*-of-*.bin"),
  *("pytorch_model.bin.index.json", "*.cp"),
)
# Folders of towers: the root, a module, and the pairs of checkpoint_layouts.
_FOLDERS = (
  *("", "*_Transformer/", "question/", "passage/", "query_model/"),
  *("passage_model/", "question_encoder/", "ctx_encoder/", "query_encoder/"),
  "passage_encoder/",
)
_MODULES = (
  *("modules.json", "config_sentence_transformers.json", "README.md"),
  *("router_config.json", "*_Router/router_config.json", "*_Asym/config.json"),
  *("*_Pooling/config.json", "*_Normalize/config.json", "*_Dense/config.json"),
  # Small, and often left as .bin where the model was converted.
  *("*_Dense/model.safetensors", "*_Dense/pytorch_model.bin"),
  "pooler.pt",  # Tevatron's, which is refused
)
FILES = _MODULES + tuple(
  f"{folder}{name}" for folder in _FOLDERS for name in _MODEL + _SAFETENSORS
)
# Downloaded where a repository has no safetensors.
TORCH_FILES = tuple(f"{folder}{name}" for folder in _FOLDERS for name in _TORCH)


def is_read(name: str) -> bool:
  """True for a file, relative to the root, that decides what a model does."""
  patterns = {*FILES, *TORCH_FILES} - {"README.md"}
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def lacks_weights(folder: pathlib.Path) -> bool:
  """True where no folder of a tower has safetensors."""
  paths = (
    path.relative_to(folder).as_posix()
    for path in pathlib.Path(folder).rglob("*.safetensors")
  )
  return all("_Dense/" in path for path in paths)
