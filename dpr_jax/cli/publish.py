"""`dpr-jax publish`: exports the towers and uploads them to the hub."""

import pathlib
import tempfile

from dpr_jax.cli import export
from dpr_jax.cli.invocation import Invocation


def publish(call: Invocation) -> None:
  """Exports to a temporary folder and uploads that to `--to`."""
  from dpr_jax.models import hub_upload

  repository = hub_upload.repository(call.flags["to"])
  if not call.flags["dry_run"]:
    hub_upload.token()  # refused before the export
  form = call.flags["format"] or "sentence-transformers"
  with tempfile.TemporaryDirectory(prefix="dpr-jax-publish-") as temporary:
    folder = pathlib.Path(temporary) / "model"
    with export.opened(call) as settled:
      export.write_towers(settled, form, folder, repository)
    files = hub_upload.files(folder)
    if call.flags["dry_run"]:
      for name, size in files.items():
        print(f"{size:>13,} {name}")
      total = sum(files.values())
      print(f"{total:>13,} bytes in {len(files)} files for {repository}")
      return
    address = hub_upload.upload(
      folder, repository, private=call.flags["private"]
    )
  print(address)
