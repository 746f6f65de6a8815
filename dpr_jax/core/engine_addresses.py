"""Addresses of search engines: the setting `index.backend`.

Input: the text of the setting.  Output: an `Address`.  This module is fast to
import.
"""

import dataclasses
import pathlib
import re

from dpr_jax.core import errors

KINDS = ("milvus", "qdrant", "lancedb")


@dataclasses.dataclass(frozen=True)
class Address:
  """A collection in a search engine.

  Attributes:
    kind: one of `KINDS`.
    location: URI of a server, or path of a file or folder of a local engine.
    collection: name of the collection.
  """

  kind: str
  location: str
  collection: str

  @property
  def bare(self) -> str:
    """The address without the collection."""
    return f"{self.kind}:{self.location}"

  def __str__(self) -> str:
    return f"{self.bare}#{self.collection}"


def parse(text: str, model: str = "dense") -> Address:
  """Reads `config.index.backend`: KIND:LOCATION, or KIND:LOCATION#COLLECTION.

  Args:
    text: the setting.
    model: model of the vectors; without a name, a collection is called
      "passages", with "_start" for the towers before training.

  Raises:
    InputError: an unknown engine, or a part is missing or malformed.
  """
  kind, colon, rest = text.partition(":")
  location, _, name = rest.partition("#")
  if kind not in KINDS or not location:
    raise errors.InputError(
      f"--backend={text}: must be one of"
      f" {', '.join(f'{each}:URI' for each in KINDS)}, as in"
      " milvus:http://localhost:19530 or lancedb:folder"
    )
  name = name or "passages"
  if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,200}", name):
    raise errors.InputError(
      f"--backend={text}: the collection {name!r} must be letters, digits and _"
    )
  if "://" not in location:
    location = str(pathlib.Path(location).expanduser().absolute())
  return Address(
    kind, location, name + model.removeprefix("dense").replace("-", "_")
  )
