"""`dpr-jax plan` and `dpr-jax index --plan`: predict memory and time."""

import dataclasses

from absl import logging

from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib


def plan(call: Invocation) -> None:
  """Compiles for a topology; needs no TPU, and of data only lengths."""
  from dpr_jax.benchmarking import harness
  from dpr_jax.planning import (
    chips,
    largest_batch,
    pareto,
    report,
    sizes,
    text_lengths,
    tpu_plan,
  )

  config, json_file = call.config, call.path("json")
  if not call.flags["topology"]:
    raise errors.InputError("--topology is missing: --topology=v5e:16x16")
  if call.flags["search"] and call.flags["pareto"]:
    raise errors.InputError("--search and --pareto: choose one of them")
  topology = chips.Topology.parse(call.flags["topology"])
  if json_file:
    harness.check_writable(json_file)
  options = {
    "lengths": text_lengths.of_config(
      config,
      sizes.limits(config),
      call.workdir if call.has_workdir else None,
    ),
    "quick": call.flags["quick"],
    "say": lambda line: logging.info(line),
  }
  if call.flags["pareto"]:
    outcomes = pareto.outcomes(config, topology, **options)
    print(pareto.table(outcomes, topology))
    if json_file:
      rows = [dataclasses.asdict(each) for each in outcomes]
      workdir_lib.write_json(json_file, rows)
    return
  if call.flags["search"]:
    config = largest_batch.largest(config, topology, **options)
  found = tpu_plan.plan(config, topology, embed=call.flags["embed"], **options)
  print(report.table(found))
  if json_file:
    workdir_lib.write_json(json_file, found)


def plan_index(call: Invocation) -> None:
  """Prints the size of an index; reads the workdir and writes nothing."""
  from dpr_jax.index import faiss_size

  config = call.config
  count, dim = call.flags["vectors"], call.flags["dim"]
  if not count:
    if not call.has_workdir:
      raise errors.InputError("--plan needs --vectors=N, or a --workdir")
    folder = call.workdir.embeddings(call.flags["model"] or "dense")
    manifest = workdir_lib.read_manifest(folder, "embed")
    count, dim = manifest["count"], manifest["dim"]
  faiss_size.print_plan(config, count, dim)
