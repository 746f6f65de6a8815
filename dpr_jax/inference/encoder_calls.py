"""`Encoder` under the names by which other libraries call an encoder.

`Calls` has the methods of sentence-transformers (`encode`, `encode_query`,
`encode_document`, `similarity`), BEIR (`encode_queries`, `encode_corpus`),
LangChain (`embed_query`, `embed_documents`) and MTEB (`encode` with batches).
All of them end in `Encoder.collect`: text in, the vectors of `encode_questions`
or `encode_passages` out.
"""

import asyncio
import dataclasses
import reprlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from dpr_jax.core import errors, progress
from dpr_jax.data import arguments, tokenization
from dpr_jax.inference import encoder_options, mteb_calls, tensors
from dpr_jax.models.dual_encoder import PASSAGE, QUESTION

# A bar for fewer texts would only flicker.
_TEXTS_WITH_BAR = 256

Vectors = Any  # [texts, dim] or [dim]: NumPy, a list of rows, or torch


class Calls:
  """Methods of `Encoder` that other libraries call.

  `Encoder` provides `model` (towers and tokenizer), `dim` and `collect`.
  """

  # Names of the similarities, as in sentence-transformers.
  similarity_fn_name = "dot"

  def encode(
    self,
    inputs: Any = None,
    prompt_name: arguments.Text = None,
    prompt: arguments.Text = None,
    **options: Any,
  ) -> Vectors:
    """Vectors of texts, as `SentenceTransformer.encode` returns them.

    Args:
      inputs: one text or passage, or several; with `task_metadata`, MTEB's
        batches.
      prompt_name: "query" or "document" (or one of their synonyms); None =
        only if both towers give the same vectors.
      prompt: text before every text, instead of the model's prefix.
      **options: see `encoder_options.Options`.

    Returns:
      [dim] of one text, [texts, dim] of several, in their order; float32.

    Raises:
      InputError: the model encodes questions and passages differently, and
        nothing says which of them these are; or an argument is bad.
    """
    chosen = encoder_options.read(prompt_name, prompt, options)
    kind = chosen.kind
    if kind is None:
      self._check_same(chosen.prompt)
      kind = PASSAGE
    if chosen.of_mteb:
      inputs = mteb_calls.texts(inputs)
    return self._vectors(kind, _inputs(inputs, options), chosen)

  def encode_query(
    self,
    inputs: Any = None,
    prompt_name: arguments.Text = None,
    prompt: arguments.Text = None,
    **options: Any,
  ) -> Vectors:
    """Vectors of questions; arguments and result as `encode`."""
    chosen = encoder_options.read(prompt_name, prompt, options, QUESTION)
    return self._vectors(QUESTION, _inputs(inputs, options), chosen)

  def encode_document(
    self,
    inputs: Any = None,
    prompt_name: arguments.Text = None,
    prompt: arguments.Text = None,
    **options: Any,
  ) -> Vectors:
    """Vectors of passages; arguments and result as `encode`."""
    chosen = encoder_options.read(prompt_name, prompt, options, PASSAGE)
    return self._vectors(PASSAGE, _inputs(inputs, options), chosen)

  def encode_queries(self, queries: arguments.Texts, **options: Any) -> Vectors:
    """Vectors of questions, as BEIR asks for them; options as `encode`."""
    queries = arguments.texts("queries", queries)
    return self.encode_query(queries, **options)

  def encode_corpus(
    self, corpus: arguments.Passages, **options: Any
  ) -> Vectors:
    """Vectors of passages, as BEIR asks for them; options as `encode`.

    Args:
      corpus: a list of {"title", "text"}, or {"title": list, "text": list}.
      **options: see `encoder_options.Options`.
    """
    passages = arguments.passages("corpus", _rows("corpus", corpus))
    return self.encode_document(passages, **options)

  def embed_query(self, text: arguments.Text) -> list[float]:
    """Vector of a question (LangChain)."""
    return self.encode_query(arguments.text("text", text)).tolist()

  def embed_documents(self, texts: arguments.Texts) -> list[list[float]]:
    """Vectors of passages without titles (LangChain)."""
    return self.encode_document(arguments.texts("texts", texts)).tolist()

  async def aembed_query(self, text: arguments.Text) -> list[float]:
    """As `embed_query`, in a thread."""
    return await asyncio.to_thread(self.embed_query, text)

  async def aembed_documents(self, texts: arguments.Texts) -> list[list[float]]:
    """As `embed_documents`, in a thread."""
    return await asyncio.to_thread(self.embed_documents, texts)

  def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
    """Inner products of all pairs, [first, second].

    Args:
      embeddings1: vectors [first, dim], or one [dim].
      embeddings2: vectors [second, dim], or one [dim].

    Returns:
      A torch tensor if one of them is one, else NumPy float32.
    """
    first, second = tensors.alike(embeddings1, embeddings2)
    return (
      first.reshape(-1, first.shape[-1])
      @ second.reshape(-1, second.shape[-1]).T
    )

  def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
    """Inner products of the vectors with the same number, [texts]."""
    first, second = tensors.alike(embeddings1, embeddings2)
    if first.shape != second.shape:
      raise errors.InputError(
        f"embeddings2: shape {tuple(second.shape)} differs from that of"
        f" embeddings1, {tuple(first.shape)}; similarity compares all pairs"
      )
    return (first * second).sum(-1)

  @property
  def max_seq_length(self) -> int:
    """Tokens of the longest text; longer ones are truncated."""
    tokenizer = self.model.tokenizer
    return max(tokenizer.question_length, tokenizer.passage_length)

  def get_embedding_dimension(self) -> int:
    """Width of a vector."""
    return self.dim

  def get_sentence_embedding_dimension(self) -> int:
    """Width of a vector: the older name."""
    return self.dim

  @property
  def model_card_data(self) -> "ModelCard":
    """What evaluators of sentence-transformers report their measures to."""
    return ModelCard()

  @property
  def mteb_model_meta(self) -> Any:
    """MTEB's description of this model; needs mteb."""
    return mteb_calls.model_meta(self)

  def _check_same(self, prompt: str | None) -> None:
    """Raises unless both kinds of text are encoded in the same way."""
    tokenizer = self.model.tokenizer
    hint = (
      "say which with prompt_name='query' or prompt_name='document', or call"
      " encode_query or encode_document"
    )
    if not self.model.encoder.shared:
      raise errors.InputError(
        f"prompt_name=None: this model has two towers; {hint}"
      )
    prefixes = tokenizer.question_prefix, tokenizer.passage_prefix
    if prompt is None and prefixes[0] != prefixes[1]:
      raise errors.InputError(
        f"prompt_name=None: this model puts {prefixes[0]!r} before questions"
        f" and {prefixes[1]!r} before passages; {hint}, or prompt='' for"
        " neither"
      )

  def _vectors(
    self, kind: str, inputs: Any, chosen: encoder_options.Options
  ) -> Vectors:
    """Encodes texts, and converts the vectors to the form asked for."""
    tokenizer = self._tokenizer(kind, chosen.prompt)
    chosen.check_dim(self.dim)
    if kind == QUESTION:
      ids = tokenizer.question_ids(arguments.texts("inputs", inputs))
    else:
      ids = tokenizer.passage_ids(arguments.passages("inputs", inputs))
    if _has_bar(chosen.show_progress_bar, len(ids)):
      with progress.Progress(len(ids), "encode", f"{kind}s") as bar:
        vectors = self.collect(kind, ids, report=bar.update)
    else:
      vectors = self.collect(kind, ids)
    unit = chosen.normalize_embeddings or self.model.encoder.normalize
    vectors = _shortened(vectors, chosen, unit)
    if chosen.convert_to_tensor:
      vectors = tensors.from_numpy(vectors)
    elif not chosen.convert_to_numpy:
      vectors = list(vectors)
    return vectors[0] if arguments.is_one(inputs) else vectors

  def _tokenizer(
    self, kind: str, prompt: str | None
  ) -> tokenization.TextTokenizer:
    """The model's tokenizer, with another prefix if `prompt` is not None."""
    tokenizer, name = self.model.tokenizer, f"{kind}_prefix"
    if prompt in (None, getattr(tokenizer, name)):
      return tokenizer
    if not self.model.head.pools_prefix:
      # The number of tokens to leave out is part of the compiled program.
      raise errors.InputError(
        f"prompt={reprlib.repr(prompt)}: this model does not pool its prefix,"
        f" and has {getattr(tokenizer, name)!r}; load it with {name}="
      )
    return dataclasses.replace(tokenizer, **{name: prompt})


class ModelCard:
  """Takes measures and keeps none: a workdir has its own reports."""

  def set_evaluation_metrics(self, *arguments: Any, **named: Any) -> None:
    """Does nothing: evaluators also return what they report here."""


def _inputs(inputs: Any, options: Mapping[str, Any]) -> Any:
  """The texts, which were called `sentences` before version 5.4."""
  if "sentences" not in options:
    return inputs
  if inputs is not None:
    raise errors.InputError(
      "sentences: the older name of inputs, which is passed too; pass one"
    )
  return options["sentences"]


def _rows(name: str, corpus: Any) -> Any:
  """Turns BEIR's {"title": list, "text": list} into a list of mappings."""
  texts = corpus.get("text") if isinstance(corpus, Mapping) else None
  if not isinstance(texts, list | tuple):
    return corpus
  titles = corpus.get("title") or [""] * len(texts)
  if isinstance(titles, str) or len(titles) != len(texts):
    raise errors.InputError(
      f"{name}: 'title' must be a list of {len(texts)} texts, as 'text' is"
    )
  return [
    {"title": title, "text": text}
    for title, text in zip(titles, texts, strict=True)
  ]


def _has_bar(wanted: bool | None, texts: int) -> bool:
  """Whether to report progress: None = long calls on a terminal."""
  if wanted is None:
    return texts >= _TEXTS_WITH_BAR and sys.stderr.isatty()
  return wanted


def _shortened(
  vectors: Float[np.ndarray, "texts dim"],
  chosen: encoder_options.Options,
  unit: bool,
) -> Float[np.ndarray, "texts shorter"]:
  """The first dimensions, scaled to length 1 where `unit` is set."""
  if not np.isfinite(vectors).all():
    row = int(np.argmin(np.isfinite(vectors).all(-1)))
    raise errors.InputError(
      f"inputs[{row}]: its vector is not finite: the weights are damaged, or"
      " overflow in bfloat16; load the model again, with another checkpoint"
    )
  if chosen.truncate_dim is not None:
    vectors = np.ascontiguousarray(vectors[:, : chosen.truncate_dim])
  if chosen.normalize_embeddings or (unit and chosen.truncate_dim is not None):
    # As torch.nn.functional.normalize: a zero vector stays one.
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors = vectors / np.maximum(norms, 1e-12)
  return vectors
