"""`mteb.evaluate` takes an `Encoder` as it is."""

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from tests.peers.conftest import QUESTIONS, RELEVANT

pytestmark = pytest.mark.compiles


@pytest.fixture
def task(world, library):
  """A retrieval task of our corpus, that downloads nothing."""
  mteb = library("mteb")
  datasets = library("datasets")
  retrieval = library("mteb.abstasks.retrieval")
  corpus = [{"id": name, **row} for name, row in world.corpus.items()]

  class Ours(retrieval.AbsTaskRetrieval):
    metadata = mteb.TaskMetadata(
      name="Ours",
      description="A test.",
      dataset={"path": "none/none", "revision": "1"},
      type="Retrieval",
      category="t2t",
      modalities=["text"],
      eval_splits=["test"],
      eval_langs=["eng-Latn"],
      main_score="ndcg_at_10",
    )

    def load_data(self, num_proc=None, **options):
      self.dataset = {
        "default": {
          "test": {
            "corpus": datasets.Dataset.from_list(corpus),
            "queries": datasets.Dataset.from_list(
              [{"id": name, "text": text} for name, text in QUESTIONS.items()]
            ),
            "relevant_docs": {
              question: dict.fromkeys(passages, 1)
              for question, passages in RELEVANT.items()
            },
            "top_ranked": None,
          }
        }
      }
      self.data_loaded = True

  return Ours()


def test_ndcg_of_a_task(world, library, task, tmp_path):
  mteb = library("mteb")
  result = mteb.evaluate(
    world.encoder,
    task,
    cache=None,
    encode_kwargs={"batch_size": 4, "show_progress_bar": False},
    prediction_folder=tmp_path,
    show_progress_bar=False,
  )
  (scores,) = result.task_results[0].scores["test"]
  wanted = world.ndcg(tmp_path)
  assert scores["ndcg_at_10"] == pytest.approx(wanted, abs=1e-5)
  assert scores["main_score"] == scores["ndcg_at_10"]
  assert 0.3 < wanted < 1
  assert result.model_name == f"dpr-jax/{world.encoder.fingerprint[:12]}"
  assert result.model_revision == world.encoder.fingerprint


def test_the_protocol(world, library):
  protocols = library("mteb.models.models_protocols")
  assert isinstance(world.encoder, protocols.EncoderProtocol)
  meta = world.encoder.mteb_model_meta
  assert meta.embed_dim == 32
  assert meta.max_tokens == 48
  assert meta.similarity_fn_name.value == "dot"
  leaves = [
    world.encoder.model.params[name] for name in ("question", "passage")
  ]
  sizes = [leaf.size for leaf in jax.tree.leaves(leaves)]
  assert meta.n_parameters == sum(sizes)


def test_batches(world):
  """What its data loaders hold, without mteb."""
  rows = list(world.corpus.values())
  batches = [
    {
      "id": world.ids[first : first + 4],
      "text": [f"{r['title']} {r['text']}" for r in rows[first : first + 4]],
      "title": [r["title"] for r in rows[first : first + 4]],
      "body": [r["text"] for r in rows[first : first + 4]],
    }
    for first in range(0, len(rows), 4)
  ]
  of_task = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
  found = world.encoder.encode(batches, prompt_type="document", **of_task)
  np.testing.assert_array_equal(found, world.passages)
  plain = [{"text": [r["text"] for r in rows]}]
  found = world.encoder.encode(plain, prompt_type="document", **of_task)
  np.testing.assert_array_equal(found, world.untitled)
  found = world.encoder.encode(
    [{"text": list(QUESTIONS.values())}], prompt_type="query", **of_task
  )
  np.testing.assert_array_equal(found, world.questions)
  with pytest.raises(errors.InputError, match="batch 0 has no 'text': only"):
    world.encoder.encode([{"image": []}], prompt_type="query", **of_task)
  with pytest.raises(errors.InputError, match="inputs='Ulm': must be MTEB's"):
    world.encoder.encode("Ulm", prompt_type="query", **of_task)
  with pytest.raises(errors.InputError, match="this model has two towers"):
    world.encoder.encode(plain, **of_task)
