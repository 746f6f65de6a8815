"""What results and answers were made from, against what is there now."""

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import staleness


@pytest.fixture
def place(tmp_path):
  """A workdir in which every stage says what it has done."""
  place = workdir_lib.Workdir(tmp_path)
  for folder, stage in (
    (place.training, "train"),
    (place.reader, "train-reader"),
    (place.embeddings("dense"), "embed"),
    (place.embeddings("dense-start"), "embed"),
    (place.index("Flat"), "index"),
    (place.index("Flat", "dense-start"), "index"),
  ):
    workdir_lib.Stage(stage, folder, {}, {}).finish({"n": 1})
  path = place.results("dev", "bm25")
  path.parent.mkdir()
  path.write_text("[]")
  return place


def _again(folder, stage):
  workdir_lib.Stage(stage, folder, {}, {}).finish({"n": 2})


@pytest.mark.parametrize("method", ["dense", "dense-start"])
def test_each_method_has_vectors_and_an_index_of_its_own(place, method):
  other = "dense-start" if method == "dense" else "dense"
  manifest = {
    "config": {"method": method, "factory": "Flat"},
    "inputs": {
      "embeddings": workdir_lib.manifest_fingerprint(
        place.embeddings(method), "embed"
      ),
      "index": workdir_lib.manifest_fingerprint(
        place.index("Flat", method), "index"
      ),
    },
  }
  _again(place.embeddings(other), "embed")
  _again(place.index("Flat", other), "index")
  staleness.check_results(place, "dev", method, manifest)
  _again(place.index("Flat", method), "index")
  with pytest.raises(errors.InputError, match=f"index .*={method}` again"):
    staleness.check_results(place, "dev", method, manifest)


def test_results_that_were_reordered(place):
  """The reader's order depends on the results before it, and on the reader."""
  results = place.results("dev", "bm25")
  manifest = {
    "inputs": {"results": workdir_lib.fingerprint_file(results)},
    "reader_training": staleness.reader_training(place),
  }
  staleness.check_results(place, "dev", "bm25-reader", manifest)
  results.write_text("[1]")
  with pytest.raises(
    errors.InputError, match="results .*--method=bm25 --rerank=reader` again"
  ):
    staleness.check_results(place, "dev", "bm25-reader", manifest)
  results.write_text("[]")
  _again(place.reader, "train-reader")
  with pytest.raises(
    errors.InputError, match="inputs have changed: reader_training"
  ):
    staleness.check_results(place, "dev", "bm25-reader", manifest)


def test_answers(place):
  results = place.results("dev", "bm25")
  manifest = {"inputs": {"questions": workdir_lib.fingerprint_file(results)}}
  staleness.check_answers(place, "dev", "bm25", manifest)
  results.write_text("[1]")
  with pytest.raises(
    errors.InputError, match="dpr-jax read --name=dev --method=bm25` again"
  ):
    staleness.check_answers(place, "dev", "bm25", manifest)


def test_what_is_gone_cannot_be_compared(place):
  """Nor what an older version, or somebody else, has not written down."""
  manifest = {"inputs": {"questions": "0", "training": "0"}}
  place.results("dev", "bm25").unlink()
  (place.training / "manifest.json").unlink()
  staleness.check_answers(place, "dev", "bm25", manifest)
  staleness.check_results(place, "dev", "dense", manifest)
  staleness.check_results(place, "dev", "dense", {})
