"""Collections of passages in Milvus, Qdrant and LanceDB, behind one interface.

A collection has a row per passage: its row in the corpus, which is the key, its
id, title and text, and its vector, compared by inner product.  Our record of
what it holds is stored in the collection's metadata.  Every library is imported
only when it is used.
"""

import contextlib
import functools
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dpr_jax.core import engine_addresses, errors
from dpr_jax.data import records

KEY = "dpr_jax"  # of our record in a collection's metadata
TEXTS = ("id", "title", "text")
_LONGEST = 65_535  # bytes of a text in Milvus
Hits = tuple[list[int], list[float]]  # rows and scores of a question


@runtime_checkable
class Collection(Protocol):
  """A collection of passages in a search engine."""

  def record(self) -> dict[str, Any] | None:
    """Our record; {} = the collection is not ours; None = there is none."""

  def count(self) -> int:
    """The number of passages in the collection."""

  def create(self, dim: int, record: dict[str, Any]) -> None:
    """Creates the empty collection."""

  def drop(self) -> None:
    """Removes the collection."""

  def add(
    self,
    first: int,
    passages: Sequence[records.Passage],
    vectors: Float[np.ndarray, "rows dim"],
  ) -> None:
    """Adds successive passages, from row `first` of the corpus."""

  def search(
    self, questions: Float[np.ndarray, "questions dim"], k: int
  ) -> list[Hits]:
    """The k passages with the largest inner products, per question."""


def check_there(address: engine_addresses.Address) -> None:
  """`InputError` if a local engine has no files; connecting would make some."""
  if "://" not in address.location and not os.path.exists(address.location):
    raise errors.InputError(
      f"--backend={address}: there is no {address.location}: run"
      " `dpr-jax index` with the same --backend first"
    )


def connect(address: engine_addresses.Address) -> Collection:
  """Opens a collection, which need not exist.

  Raises:
    InputError: the engine's library is missing, or it cannot be reached.
  """
  kinds = {"milvus": _Milvus, "qdrant": _Qdrant, "lancedb": _LanceDB}
  with translated(address):
    client = open_client(address.kind, address.location)
    return kinds[address.kind](client, address)


@functools.lru_cache(maxsize=8)
def open_client(kind: str, location: str) -> Any:
  """The client of an engine's library; a local Qdrant allows only one."""
  is_remote = "://" in location
  if kind == "milvus":
    package = "pymilvus" if is_remote else "pymilvus[milvus-lite]"
    token = os.environ.get("MILVUS_TOKEN", "")
    library = _library(kind, "pymilvus", package)
    return library.MilvusClient(location, token=token)
  if kind == "qdrant":
    library = _library(kind, "qdrant_client", "qdrant-client")
    if not is_remote:
      return library.QdrantClient(path=location)
    return library.QdrantClient(
      url=location,
      api_key=os.environ.get("QDRANT_API_KEY"),
      check_compatibility=False,  # asks for the version in a thread of its own
    )
  return _library(kind, "lancedb", "lancedb").connect(location)


@contextlib.contextmanager
def translated(address: engine_addresses.Address) -> Iterator[None]:
  """Turns errors of an engine's library into `InputError`, in one line."""
  try:
    yield
  except errors.InputError:
    raise
  except Exception as error:  # each library has many, some of gRPC and HTTP
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise errors.InputError(f"--backend={address}: {reason}") from error


def _library(kind: str, name: str, package: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise errors.InputError(
      f"--backend={kind} needs {package} ({error}): pip install '{package}'"
    ) from error


def _record(text: Any) -> dict[str, Any]:
  """Our record from its JSON; {} if it is not ours."""
  try:
    found = json.loads(text)
  except (TypeError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


class _Milvus:
  """Milvus: a cluster by its URI, or Milvus Lite by the path of a `.db`."""

  def __init__(self, client: Any, address: engine_addresses.Address):
    self._client, self._name = client, address.collection
    self._types = _library(address.kind, "pymilvus", "pymilvus").DataType

  def record(self) -> dict[str, Any] | None:
    if not self._client.has_collection(self._name):
      return None
    about = self._client.describe_collection(self._name)
    # Milvus Lite keeps properties and no description.
    properties = about.get("properties") or {}
    return _record(properties.get(KEY)) or _record(about.get("description"))

  def count(self) -> int:
    self._client.load_collection(self._name)
    (row,) = self._client.query(
      self._name, filter="", output_fields=["count(*)"]
    )
    return int(row["count(*)"])

  def create(self, dim: int, record: dict[str, Any]) -> None:
    text = json.dumps(record)
    schema = self._client.create_schema(
      auto_id=False, enable_dynamic_field=False, description=text
    )
    schema.add_field("row", self._types.INT64, is_primary=True)
    for name in TEXTS:
      schema.add_field(name, self._types.VARCHAR, max_length=_LONGEST)
    schema.add_field("vector", self._types.FLOAT_VECTOR, dim=dim)
    index = self._client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    self._client.create_collection(
      self._name,
      schema=schema,
      index_params=index,
      properties={KEY: text},
      consistency_level="Strong",
    )

  def drop(self) -> None:
    self._client.drop_collection(self._name)

  def add(self, first, passages, vectors) -> None:
    rows = [
      {"row": first + place, "vector": vector}
      | {name: _cut(getattr(passage, name)) for name in TEXTS}
      for place, (passage, vector) in enumerate(
        zip(passages, vectors, strict=True)
      )
    ]
    self._client.insert(self._name, rows)

  def search(self, questions, k: int) -> list[Hits]:
    found = self._client.search(
      self._name,
      data=list(questions),
      limit=k,
      output_fields=["row"],
      anns_field="vector",
      search_params={"metric_type": "IP"},
    )
    return [
      ([int(hit["row"]) for hit in hits], [hit["distance"] for hit in hits])
      for hits in found
    ]


def _cut(text: str) -> str:
  """The beginning of a text that Milvus can hold."""
  return text.encode()[:_LONGEST].decode(errors="ignore")


class _Qdrant:
  """Qdrant: a server by its URL, or a folder in local mode."""

  def __init__(self, client: Any, address: engine_addresses.Address):
    self._client, self._name = client, address.collection
    self._models = _library(
      address.kind, "qdrant_client", "qdrant-client"
    ).models
    self._is_remote = "://" in address.location

  def record(self) -> dict[str, Any] | None:
    if not self._client.collection_exists(self._name):
      return None
    metadata = self._client.get_collection(self._name).config.metadata or {}
    return _record(metadata.get(KEY))

  def count(self) -> int:
    return self._client.count(self._name, exact=True).count

  def create(self, dim: int, record: dict[str, Any]) -> None:
    self._client.create_collection(
      self._name,
      vectors_config=self._models.VectorParams(
        size=dim, distance=self._models.Distance.DOT
      ),
      metadata={KEY: json.dumps(record)},
    )

  def drop(self) -> None:
    self._client.delete_collection(self._name)

  def add(self, first, passages, vectors) -> None:
    self._client.upsert(
      self._name,
      self._models.Batch(
        ids=list(range(first, first + len(passages))),
        vectors=vectors.tolist(),
        payloads=[
          {name: getattr(passage, name) for name in TEXTS}
          for passage in passages
        ],
      ),
    )

  def search(self, questions, k: int) -> list[Hits]:
    # Local mode is exact anyway, and warns about the parameter.
    exact = self._models.SearchParams(exact=True) if self._is_remote else None
    found = self._client.query_batch_points(
      self._name,
      [
        self._models.QueryRequest(query=each.tolist(), limit=k, params=exact)
        for each in questions
      ],
    )
    return [
      ([int(p.id) for p in each.points], [p.score for p in each.points])
      for each in found
    ]


class _LanceDB:
  """LanceDB: a folder, or an object store by its URI."""

  def __init__(self, client: Any, address: engine_addresses.Address):
    self._database, self._name = client, address.collection
    self._arrow = _library(address.kind, "pyarrow", "pyarrow")
    self._table = None
    # It has no `has`; a missing table is an error of no type of its own.
    with contextlib.suppress(FileNotFoundError, ValueError):
      self._table = self._database.open_table(self._name)

  def record(self) -> dict[str, Any] | None:
    if self._table is None:
      return None
    return _record((self._table.schema.metadata or {}).get(KEY.encode()))

  def count(self) -> int:
    return self._table.count_rows()

  def create(self, dim: int, record: dict[str, Any]) -> None:
    arrow = self._arrow
    schema = arrow.schema(
      [
        arrow.field("row", arrow.int64()),
        *(arrow.field(name, arrow.string()) for name in TEXTS),
        arrow.field("vector", arrow.list_(arrow.float32(), dim)),
      ],
      metadata={KEY: json.dumps(record)},
    )
    self._table = self._database.create_table(self._name, schema=schema)

  def drop(self) -> None:
    self._database.drop_table(self._name)
    self._table = None

  def add(self, first, passages, vectors) -> None:
    arrow = self._arrow
    columns = [
      arrow.array(range(first, first + len(passages)), arrow.int64()),
      *(
        arrow.array([getattr(p, name) for p in passages], arrow.string())
        for name in TEXTS
      ),
      arrow.FixedSizeListArray.from_arrays(
        arrow.array(vectors.reshape(-1)), vectors.shape[1]
      ),
    ]
    schema = self._table.schema
    self._table.add(arrow.Table.from_arrays(columns, schema=schema))

  def search(self, questions, k: int) -> list[Hits]:
    found = []
    for each in questions:
      query = self._table.search(each, vector_column_name="vector")
      query = query.distance_type("dot").bypass_vector_index()
      hits = query.select(["row", "_distance"]).limit(k).to_list()
      # A "dot" distance is 1 - the inner product.
      scores = [1 - hit["_distance"] for hit in hits]
      found.append(([int(hit["row"]) for hit in hits], scores))
    return found
