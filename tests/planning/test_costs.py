"""What a compiled program costs: FLOPs of its products, and traffic."""

import pytest

from dpr_jax.planning import costs, hlo


@pytest.mark.parametrize(
  ("line", "flops"),
  [
    (
      "bf16[32,256,2304]{2,1,0} convolution(%l, %r), window={size=1},"
      " dim_labels=0bf_io0->0bf",
      2 * 32 * 256 * 2304 * 768,
    ),
    (  # a batched product, as the TPU compiler writes it
      "f32[32,12,256,256]{2,3,1,0} convolution(%l, %r), window={size=32x12"
      " stride=31x11 lhs_dilate=32x12}, dim_labels=01bf_01oi->01bf",
      2 * 32 * 12 * 256 * 256 * 64,
    ),
    (
      "bf16[32,12,256,64]{2,3,1,0} convolution(%l, %r), window={size=32x12"
      " stride=32x12 pad=31_31x11_11 lhs_dilate=31x11 rhs_reversal=1x1},"
      " dim_labels=01fb_01oi->01fb",
      2 * 32 * 12 * 256 * 64 * 256,
    ),
  ],
)
def test_flops_of_products_written_as_convolutions(line, flops):
  shapes = {
    "0bf_io0->0bf": ("bf16[32,256,768]", "bf16[768,2304,1]"),
    "01bf_01oi->01bf": ("bf16[32,12,256,64]", "bf16[32,12,256,64]"),
    "01fb_01oi->01fb": ("bf16[32,12,256,64]", "bf16[32,12,256,256]"),
  }
  label = line.rpartition("dim_labels=")[2]
  left, right = shapes[label]
  text = (
    f"ENTRY %m (l: f32[]) -> f32[] {{\n  %l = {left}{{0}} parameter(0)\n"
    f"  %r = {right}{{0}} parameter(1)\n  ROOT %c = {line}\n}}\n"
  )
  program = hlo.Program(text)
  lines = program.computations["m"]
  assert costs.convolution_flops(lines["c"], lines) == flops


@pytest.mark.parametrize(
  ("line", "flops"),
  [
    # Two FLOPs for each of 4 x 16 values and 8 terms.
    (
      "f32[4,16]{1,0} dot(%l, %r), lhs_contracting_dims={1},"
      " rhs_contracting_dims={0}",
      2 * 4 * 16 * 8,
    ),
    # A kernel says itself how many; one that does not has none.
    (
      'f32[4,16]{1,0} custom-call(%l, %r), backend_config={"cost_estimate":'
      '{"flops":"123","bytes":"4"}}',
      123,
    ),
    ('f32[4,16]{1,0} custom-call(%l, %r), custom_call_target="x"', 0),
    ("f32[4,16]{1,0} add(%l, %r)", 0),
  ],
)
def test_flops_of_other_operations(line, flops):
  program = hlo.Program(
    "ENTRY %m (l: f32[]) -> f32[] {\n  %l = f32[4,8]{1,0} parameter(0)\n"
    f"  %r = f32[8,16]{{1,0}} parameter(1)\n  ROOT %c = {line}\n}}\n"
  )
  (operation,) = costs.operations(program)
  assert operation.flops == flops
  assert operation.times == 1


def test_what_is_never_called_costs_nothing():
  part = "(a: f32[]) -> f32[] {\n  ROOT %x = f32[4]{0} add(%a, %a)\n}\n"
  program = hlo.Program(f"%unused {part}\nENTRY %main {part}")
  assert len(costs.operations(program)) == 1


@pytest.mark.parametrize(
  ("window", "outputs", "pairs"),
  [
    # Positions -1 0 1 and 1 2 3 of the four.
    ({"stride": "2", "pad": "1_0"}, 2, 5),
    # Positions -2 0 2, 0 2 4 and 2 4 6: of the last only the first is real.
    ({"stride": "2", "rhs_dilate": "2", "pad": "2_3"}, 3, 5),
    ({"stride": "3", "pad": "2_0"}, 2, 4),  # -2 -1 0 and 1 2 3
  ],
)
def test_products_with_padding_do_not_count(window, outputs, pairs):
  """Three taps over four numbers, with strides that skip the first real one."""
  assert costs._valid_pairs(4, outputs, 3, window) == pairs
