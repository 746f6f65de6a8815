"""What the tests of indexes share: sizes, kinds of index, a stage."""

from dpr_jax.core import workdir as workdir_lib

DIM, COUNT = 16, 1500
# Factory string, and the recall@20 it must have here.
FACTORIES = {
  "Flat": 1.0,
  "HNSW16": 0.95,
  "HNSW16_SQ8": 0.95,
  "HNSW8_PQ8x4": 0.4,
  "IVF16,Flat": 0.99,
  "IVF16_HNSW8,Flat": 0.99,
  "IVF16,SQ8": 0.95,
  "IVF16,PQ8x4": 0.4,
  "IVF16,PQ8x4fs": 0.4,
  "IVF16,PQ8x4fs,RFlat": 0.9,
  "IVF16,PQ8x4,Refine(SQ8)": 0.9,
  "SQ8": 0.95,
  "SQfp16": 0.99,
  "PQ8x4": 0.4,
  "RaBitQ4": 0.85,
  "IVF16,RaBitQfs4": 0.85,
  "IVF16,FlatPanorama4": 0.99,
  "PCA12,Flat": 0.5,
  "RR16,SQ8": 0.95,
  "OPQ4_8,IVF8,PQ4x4": 0.2,
}


def stage(folder):
  """A stage `index` with no config and no inputs."""
  return workdir_lib.Stage("index", folder, {}, {})
