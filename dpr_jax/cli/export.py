"""`dpr-jax export` and `dpr-jax import`: write and read other formats."""

import contextlib
import pathlib
from collections.abc import Iterator

from dpr_jax.cli import experiment
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib


def _out(call: Invocation) -> pathlib.Path:
  if not call.flags["out"]:
    raise errors.InputError(f"{call.command.name} needs --out=DIR")
  return workdir_lib.user_path(call.flags["out"])


def export(call: Invocation) -> None:
  """Exports the towers, the vectors or the reader of a workdir."""
  out, workdir = _out(call), call.workdir
  for name in workdir_lib.FOLDERS:
    workdir_lib.refuse_inside("--out", out, workdir.root / name)
  with opened(call) as settled:
    _export(settled, out)


@contextlib.contextmanager
def opened(call: Invocation) -> Iterator[Invocation]:
  """The call with its settled config, and its workdir locked."""
  settled = call.with_config(experiment.settled(call, call.command))
  with contextlib.ExitStack() as stack:
    # A read-only workdir cannot be locked, but no one can change it either.
    with contextlib.suppress(errors.DiskError):
      stack.enter_context(experiment.opened(call.workdir))
    yield settled


def _export(call: Invocation, out: pathlib.Path) -> None:
  what, form = call.flags["what"], call.flags["format"]
  model = call.flags["model"] or "dense"
  if call.flags["int8"] and what != "model":
    raise errors.InputError(f"--int8: has no meaning for --what={what}")
  if what == "embeddings":
    from dpr_jax.embedding import vector_export, vector_shards

    vectors = vector_shards.open_vectors(call.workdir.embeddings(model))
    passages = None
    if form == "parquet":
      from dpr_jax.data import prepare

      passages = prepare.open_passages(call.workdir)
    vector_export.export(vectors, form, out, passages)
  elif what == "reader":
    from dpr_jax.models import reader_export, reader_model

    reader = reader_model.trained(call.config, call.workdir)
    reader_export.export(reader, out, form or "")
  else:
    write_towers(call, form, out)


def write_towers(
  call: Invocation, form: str | None, out: pathlib.Path, name: str = ""
) -> None:
  """Exports the towers of a workdir.

  Args:
    call: a call with a config and a workdir.
    form: format of the export.
    out: output folder.
    name: name in the model card; "" = that of the folder.
  """
  from dpr_jax.evaluation import model_measures
  from dpr_jax.models import export as export_lib

  model = call.flags["model"] or "dense"
  export_lib.export(
    call.config,
    call.workdir,
    form,
    out,
    model,
    int8=call.flags["int8"],
    name=name,
    evaluated=model_measures.of_workdir(call.workdir, model),
  )


def import_(call: Invocation) -> None:
  """Imports vectors of other libraries, into a folder or into a workdir."""
  if call.flags.typed("what") and call.flags["what"] != "embeddings":
    raise errors.InputError(
      "import: only --what=embeddings can be imported; checkpoints need no"
      " import: --config.model.checkpoint=DIR"
    )
  if not call.flags["from"]:
    raise errors.InputError("import needs --from=FILE or --from=DIR")
  source = workdir_lib.user_path(call.flags["from"])
  if call.flags["out"]:
    if call.has_workdir:
      raise errors.InputError(
        "import writes --out=DIR or the vectors of --workdir=DIR: give only one"
      )
    from dpr_jax.embedding import vector_formats

    vector_formats.import_(source, workdir_lib.user_path(call.flags["out"]))
    return
  if not call.has_workdir:
    raise errors.InputError("import needs --workdir=DIR or --out=DIR")
  from dpr_jax.core import config as config_lib
  from dpr_jax.embedding import vector_import

  config = call.config if call.has_config else config_lib.base_config()
  with experiment.opened(call.workdir):
    vector_import.into_workdir(
      config,
      call.workdir,
      source,
      model=call.flags["model"] or "dense",
      named=call.flags.names_checkpoint,
      verify=call.flags["verify"],
      overwrite=call.flags.overwrites("import"),
    )
