"""Reading a compiled program: loops, collectives, FLOPs and traffic."""

import pytest

from dpr_jax.planning import costs, hlo

PROGRAM = """HloModule jit_step, is_scheduled=true

%cond (p.0: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(11), metadata={op_name="cond"}
  %p.0 = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %limit), direction=LT
}

%fused (a: f32[11,8,16], b: f32[4,8], c: s32[]) -> f32[4,16] {
  %a = f32[11,8,16]{2,1,0:T(8,128)} parameter(0)
  %b = f32[4,8]{1,0:T(8,128)} parameter(1)
  %c = s32[]{:T(128)} parameter(2)
  %slice = f32[1,8,16]{2,1,0} dynamic-slice(%a, %c), dynamic_slice_sizes={1,8,16}
  %flat = f32[8,16]{1,0} bitcast(%slice)
  ROOT %conv = f32[4,16]{1,0} convolution(%b, %flat), dim_labels=bf_io->bf
}

%body (p.1: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p.1 = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, /*index=2*/f32[11,8,16]{2,1,0}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%p.1), index=1
  %w = f32[11,8,16]{2,1,0:T(8,128)} get-tuple-element(%p.1), index=2
  %product = f32[4,16]{1,0:T(8,128)} fusion(%w, %x, %n.1), kind=kOutput, calls=%fused
  %moved = f32[4,8]{1,0:T(8,128)} collective-permute(%x), channel_id=9, source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) tuple(%n.1, %moved)
}

%part.1 (g: f32[2,8]) -> f32[16,8] {
  %g = f32[2,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[16,8]{1,0} all-gather(%g), channel_id=4, dimensions={0}, frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/all_gather"}
}

%part.2 (h: f32[2,8]) -> f32[16,8] {
  %h = f32[2,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[16,8]{1,0} all-gather(%h), channel_id=4, dimensions={0}, frontend_attributes={chain_id="0"}
}

ENTRY %main (q: f32[2,8]) -> f32[2,8] {
  %q = f32[2,8]{1,0:T(8,128)} parameter(0)
  %start = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) tuple(%q, %q)
  %loop = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) while(%start), condition=%cond, body=%body
  %one = f32[16,8]{1,0} fusion(%q), kind=kLoop, calls=%part.1
  %two = f32[16,8]{1,0} fusion(%q), kind=kLoop, calls=%part.2
  %sum = (f32[16,8]{1,0}, bf16[4]{0}) all-reduce(%one, %half), channel_id=1, to_apply=%cond
  ROOT %scattered = f32[2,8]{1,0} reduce-scatter(%one), channel_id=1, dimensions={0}
  %half = bf16[4]{0} constant({...})
}
"""  # noqa: E501


def test_loops_and_collectives_are_counted():
  program = hlo.Program(PROGRAM)
  assert program.entry == "main"
  assert program.times()["body"] == 11
  found = {(c.kind, c.times, c.bytes) for c in program.collectives()}
  assert found == {
    ("collective-permute", 11, 4 * 8 * 4),
    ("all-gather", 1, 16 * 8 * 4),  # two parts of one chain
    ("all-reduce", 1, 16 * 8 * 4 + 8),
    ("reduce-scatter", 1, 16 * 8 * 4),
  }


def test_flops_and_traffic_follow_loops_and_slices():
  operations = {one.name: one for one in costs.operations(hlo.Program(PROGRAM))}
  product = operations["product"]
  assert product.times == 11
  assert product.flops == 2 * 4 * 8 * 16
  # A layer's slice of the weights and the result; x is on the chip.
  assert product.bytes == 8 * 16 * 4 + 4 + 4 * 16 * 4


def test_a_loop_of_unknown_length_is_an_error():
  with pytest.raises(ValueError, match="loop: the trip count"):
    hlo.Program(PROGRAM.replace("direction=LT", "direction=NE")).times()
