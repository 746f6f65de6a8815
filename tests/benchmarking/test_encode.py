"""`bench encode` on the tiny fixtures: agreement and structure, no seconds."""

import copy
import json
import sys

import numpy as np
import pytest

from dpr_jax.benchmarking import encode, vector_quality
from dpr_jax.benchmarking import sentence_transformers_onnx as onnx_peer
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
def test_with_8_bits(tiny_config, mined_workdir, capsys):
  """`embed.backend` adds a side, which is compared with float32."""
  for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason=f"no {library}: extra `onnx`")
  config = copy.deepcopy(tiny_config)
  config.embed.backend = "onnx-int8"
  report = encode.bench(config, mined_workdir, **SMALL)
  name = encode.OURS_LIKE[encode.INT8]
  _check(report, [encode.OURS, name])
  assert 1e-6 < report["checks"][name]
  found = report["quality"][name]
  assert 0.98 < found["least_cosine"] <= found["mean_cosine"] < 1
  assert found["top20_recall"] == 1  # of 12 passages, all are among the first
  assert f"{name}: cosines to float32" in capsys.readouterr().out


def test_the_8_bit_peer_follows_the_processor(monkeypatch, tmp_path):
  """Its settings by name; without optimum-onnx one line says where to look."""
  assert onnx_peer.processor("flags : avx2 avx512_vnni\n") == (
    "avx512_vnni",
    "model_qint8_avx512_vnni.onnx",
  )
  assert onnx_peer.processor("flags : avx2\n") == (
    "avx2",
    "model_quint8_avx2.onnx",
  )
  monkeypatch.setitem(sys.modules, "optimum.onnxruntime", None)
  settings = peer_lib.EncodingSettings(
    folder=tmp_path, pooling="cls", normalize=False, passage_length=16
  )
  with pytest.raises(errors.InputError, match="needs optimum-onnx.*scale.md"):
    onnx_peer.load(settings, None)


def test_quality_by_hand():
  """Two passages of three keep their vectors; one turns by 60 degrees."""
  wanted = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
  vectors = wanted.copy()
  vectors[2] = [0.5, np.sqrt(0.75)]
  questions = np.array([[0.0, 1.0], [1.0, 0.0]])
  found = vector_quality.quality(wanted, vectors, questions[:0])
  assert found == pytest.approx(
    {"mean_cosine": (1 + 1 + 0.5) / 3, "least_cosine": 0.5}
  )
  assert "passages" not in vector_quality.line("a", found)
  # More passages than ranks: 30 copies of the first, 20 of which are found.
  many = np.concatenate([wanted, np.repeat(wanted[:1], 30, axis=0)])
  moved = many.copy()
  moved[3] = [0.0, 1.0]  # row 3 was found by the second question, row 20 is now
  found = vector_quality.quality(many, moved, questions)
  assert found["same_top1"] == 1.0
  # The first question finds row 1, and 19 of equal score 0 in order: rows 0, 2
  # to 19; then rows 1, 3, and 0, 2, 4 to 19.  The second loses row 3 of 20.
  assert found["top20_recall"] == pytest.approx((1 + 19 / 20) / 2)
  assert "97.5 % of the first 20" in vector_quality.line("a", found)


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
