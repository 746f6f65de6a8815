"""Claims about pods, held to what the TPU compiler makes of the train step."""

import jax
import pytest

from dpr_jax.planning import chips, tpu_plan

QUESTIONS = 8
HEADS = 2
WIDTH, LAYERS, VOCABULARY, POSITIONS = 128, 3, 30522, 512


def _bytes(step, kind):
  return sum(row["bytes"] for row in step.collectives if row["kind"] == kind)


def _parameters():
  layer = 4 * (WIDTH**2 + WIDTH) + 2 * 4 * WIDTH**2 + 5 * WIDTH + 4 * WIDTH
  tables = (VOCABULARY + POSITIONS + 2) * WIDTH + 2 * WIDTH
  return 2 * (LAYERS * layer + tables)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x4", "v5e:16x16"])
def test_exactly_the_collectives_that_the_algorithm_needs(compile_plan, name):
  """Passage vectors out, their gradients back, gradients once, small change."""
  step = compile_plan(name, QUESTIONS)
  cores = chips.Topology.parse(name).cores
  vectors = cores * QUESTIONS * 2 * WIDTH * 4
  gathered = _bytes(step, "all-gather")
  # Over many cores the compiler writes a small gather as an all-reduce of
  # arrays that are zero but for a core's own part.
  assert gathered in (vectors, 0)
  assert not _bytes(step, "all-to-all")
  assert not _bytes(step, "collective-permute")
  # The compiler may write a reduce-scatter as an all-reduce and a slice.
  reduced = _bytes(step, "all-reduce") + _bytes(step, "reduce-scatter")
  small = 64 * cores * QUESTIONS + 4096  # keys and masks of passages, scalars
  # Gradients of tables may travel in bfloat16, that they were made in.
  gradients = 4 * _parameters()
  tables = 2 * 2 * (VOCABULARY + POSITIONS) * WIDTH
  reduced -= vectors + (0 if gathered else vectors)
  assert gradients - tables <= reduced <= gradients + small
  assert step.fits
  assert step.flops_ratio() <= 1.15


@pytest.mark.slow
def test_memory_does_not_follow_the_batch_with_cache_and_ring(compile_plan):
  """Four times the questions: but for the batch and its vectors, the same."""
  settings = {
    "gradient_cache": True,
    "chunk_size": 8,
    "loss": "ring",
    "loss_tile": 16,
  }
  few = compile_plan("v5e:2x4", 16, **settings)
  many = compile_plan("v5e:2x4", 64, **settings)
  questions = 64 - 16
  # ids, masks and vectors of a question and two passages, padded to tiles,
  # and what travels with them.
  of_question = 3 * (WIDTH * 4 * 6 + 128 * 5)
  growth = many.memory["total"] - few.memory["total"]
  assert growth <= questions * of_question + 2**20
  assert many.flops_ratio() <= 1.45


@pytest.mark.slow
def test_a_sharded_optimizer_takes_its_part_of_the_memory(compile_plan):
  whole = compile_plan("v5e:2x4", QUESTIONS)
  cut = compile_plan("v5e:2x4", QUESTIONS, shard_optimizer=True)
  saved = whole.memory["arguments"] - cut.memory["arguments"]
  assert saved >= 0.8 * 2 * 4 * _parameters() * 7 / 8
  # No more gradients travel than before (a reduce-scatter may be written as an
  # all-reduce and a slice).
  reduced = _bytes(cut, "all-reduce") + _bytes(cut, "reduce-scatter")
  assert reduced <= 1.05 * _bytes(whole, "all-reduce")


@pytest.mark.slow
def test_the_kernel_compiles_and_keeps_scores_on_the_chip(compile_plan):
  """As much work, less traffic, the same collectives; remat gives up memory.

  So with texts of half the length in packed rows, which are half the work.
  """
  plain, fused, inner, packed = (
    compile_plan("v5e:2x4", QUESTIONS, **settings)
    for settings in (
      {},
      {"attention": "fused"},
      {"remat": "inner"},
      {"lengths": ((8,), (16,))},
    )
  )
  assert packed.model_flops < 0.5 * plain.model_flops
  assert packed.flops_ratio() == pytest.approx(plain.flops_ratio(), rel=0.05)
  assert _bytes(packed, "all-gather") == _bytes(plain, "all-gather")
  assert fused.flops_ratio() == pytest.approx(plain.flops_ratio(), rel=0.05)
  # Of passages alone, in float32, once; they are written and read, twice.
  scores = LAYERS * 2 * QUESTIONS * HEADS * 32**2 * 4
  assert plain.hbm_bytes - fused.hbm_bytes > 4 * scores
  assert fused.collectives == plain.collectives
  assert inner.memory["temporaries"] < plain.memory["temporaries"]
  assert plain.flops_ratio() < inner.flops_ratio() <= 1.15


@pytest.mark.parametrize(
  "name",
  ["v4:2x2x1", "v4:2x2x4", "v5e:2x4", "v5p:2x2x1", "v6e:4x4", "tpu7x:2x2x1"],
)
def test_a_device_has_the_memory_that_its_compiler_knows(plan_devices, name):
  """Both cores of a v4 or v5p chip work as one; "fits" is the compiler's."""
  topology = chips.Topology.parse(name)
  on = plan_devices(name)
  assert len(on) == topology.cores
  assert on[0].num_cores == (2 if name[:3] in ("v4:", "v5p") else 1)
  too_much = jax.ShapeDtypeStruct(
    (topology.chip.hbm_bytes // 2,),
    "float32",
    sharding=jax.sharding.SingleDeviceSharding(on[0]),
  )
  lowered = jax.jit(lambda x: x + 1).lower(too_much)
  step = tpu_plan.compile_step(lowered, topology, 0)
  assert not step.fits
  # Of the compilers of jax 0.10 and 0.12 the one with less; they print GiB
  # with two decimals.
  assert 0 <= step.hbm_limit - topology.chip.hbm_bytes <= 0.0101 * 2**30


@pytest.mark.parametrize(
  ("message", "wanted"),
  [
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory"
      " in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded",
      (int(20.5 * 2**30), int(15.75 * 2**30)),
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
      " for HLO temporaries (19.99G) exceeds available HBM (15.75G).",
      (int(19.99 * 2**30), int(15.75 * 2**30)),
    ),
    ("INTERNAL: something else", None),
  ],
)
def test_what_the_compiler_says_of_too_large_a_program(message, wanted):
  """Both of its messages mean "does not fit"; others are errors."""
  assert tpu_plan.too_large(message) == wanted
