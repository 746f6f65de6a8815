"""`bench encode` on the tiny fixtures: agreement and structure, no seconds."""

import copy
import json

import numpy as np
import pytest

from dpr_jax.benchmarking import encode
from dpr_jax.benchmarking import sentence_transformers_peer as peer_lib
from dpr_jax.core import errors

SMALL = {"repeats": 2, "passages": 12, "peak_size": 64}


def _check(report, names):
  assert list(report["contenders"]) == names
  for found in report["contenders"].values():
    assert len(found["seconds"]) == 2
    speed = found["passages_per_second"]
    assert 0 < speed["least"] <= speed["median"] <= speed["greatest"]
    assert found["passages_per_processor_second"]["median"] > 0
    assert found["gflops"] > 0
  assert len(report["matrix_peaks_gflops"]) == 2
  assert report["compiled_in_rounds"] == 0
  assert 0 <= report["padding_share"] < 1
  assert report["settings"]["passages"] == 12


def test_alone(tiny_config, mined_workdir, tmp_path, capsys):
  """Without a peer: no torch is needed, the workdir is left alone."""
  before = sorted(mined_workdir.root.rglob("*"))
  path = tmp_path / "report.json"
  report = encode.bench(
    tiny_config, mined_workdir, json_file=str(path), **SMALL
  )
  assert sorted(mined_workdir.root.rglob("*")) == before
  _check(report, [encode.OURS])
  assert json.loads(path.read_text())["bench"] == "encode"
  assert "of our tokens were padding" in capsys.readouterr().out
  with pytest.raises(errors.InputError, match="--against=faiss"):
    encode.bench(tiny_config, mined_workdir, against="faiss")


@pytest.mark.compiles
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_peer_computes_the_same(
  tiny_config, mined_workdir, pooling, monkeypatch, capsys
):
  """Vectors agree; where they do not, there is no contest."""
  pytest.importorskip("torch", reason="no torch: extra `bench`")
  pytest.importorskip(
    "sentence_transformers", reason="no sentence-transformers: extra `bench`"
  )
  config = copy.deepcopy(tiny_config)
  config.model.pooling = pooling
  config.model.normalize = pooling == "mean"
  report = encode.bench(config, mined_workdir, against=peer_lib.NAME, **SMALL)
  _check(report, [encode.OURS, peer_lib.NAME])
  assert report["checks"][peer_lib.NAME] < encode.TOLERANCE
  assert f"times as fast as {peer_lib.NAME}" in capsys.readouterr().out
  encode_ = peer_lib.Embedder.encode
  monkeypatch.setattr(
    peer_lib.Embedder,
    "encode",
    lambda self, texts: encode_(self, texts) + np.float32(1e-3),
  )
  with pytest.raises(RuntimeError, match="do not compute the same"):
    encode.bench(config, mined_workdir, against=peer_lib.NAME, **SMALL)


def test_figures_by_hand():
  """12 passages in 2 s and in 4 s, of 6 GFLOP each; peaks of 10 and of 3."""
  found = encode.figures(
    [2.0, 4.0], [3.0, 6.0], 12, [6 * 10**9] * 2, [10.0, 3.0]
  )
  assert found["passages_per_second"]["median"] == 4.5
  assert found["passages_per_processor_second"]["median"] == 3.0
  assert found["gflops"] == pytest.approx(2.25)
  shares = found["share_of_peak"]
  assert (shares["least"], shares["greatest"]) == pytest.approx((0.3, 0.5))
