"""Tests of `launch/tpu_vm.sh` with a `gcloud` that only records its calls."""

import os
import subprocess

import pytest

pytestmark = pytest.mark.processes

# States come from a file, a line per question; the last one stays.
GCLOUD = r"""#!/bin/bash
printf '%s\n' "$*" | tr '\n' ' ' >> "$CALLS"; echo >> "$CALLS"
case "$*" in
  *describe*)
    state=$(head -1 "$STATES")
    if [[ $(wc -l < "$STATES") -gt 1 ]]; then sed -i 1d "$STATES"; fi
    if [[ $state == NONE ]]; then exit 1; fi
    echo "$state" ;;
  *venv/bin/dpr-jax*)
    code=$(head -1 "$CODES"); sed -i 1d "$CODES"; exit "$code" ;;
esac
"""


@pytest.fixture
def tpu_vm(repository, tmp_path):
  """Runs the script; gives the process and the calls of gcloud."""

  def run(*arguments, states=("ACTIVE",), codes=(0,), **environment):
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    files = {}
    for name, lines in (("STATES", states), ("CODES", codes), ("CALLS", ())):
      files[name] = tmp_path / name
      files[name].write_text("".join(f"{line}\n" for line in lines))
    process = subprocess.run(
      [repository / "launch" / "tpu_vm.sh", *arguments],
      capture_output=True,
      text=True,
      env={
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "WAIT_SECONDS": "0",
        **{name: str(path) for name, path in files.items()},
        **environment,
      },
      timeout=60,
    )
    return process, files["CALLS"].read_text().splitlines()

  return run


def test_create_asks_once_and_waits(tpu_vm):
  process, calls = tpu_vm(
    "create",
    states=("NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"),
    TYPE="v5litepod-256",
    SPOT="1",
    PROJECT="mine",
  )
  assert process.returncode == 0, process.stderr
  created = [call for call in calls if " create " in call]
  assert len(created) == 1
  for part in ("v5litepod-256", "--spot", "--project=mine", "queued-resources"):
    assert part in created[0]
  assert "PROVISIONING" in process.stderr


def test_a_slice_that_is_there_is_not_asked_for_again(tpu_vm):
  process, calls = tpu_vm("create")
  assert process.returncode == 0
  assert not any(" create " in call for call in calls)


def test_a_slice_that_cannot_be_had_is_an_error(tpu_vm):
  process, _ = tpu_vm("create", states=("NONE", "WAITING", "FAILED"))
  assert process.returncode == 1
  assert "is FAILED" in process.stderr


def test_setup_copies_the_checkout_to_every_host(tpu_vm):
  process, calls = tpu_vm("setup", BUCKET="data")
  assert process.returncode == 0, process.stderr
  assert all("--worker=all" in call for call in calls)
  text = "\n".join(calls)
  assert "tpu-vm scp" in text
  assert "./dpr-jax[tpu] -c dpr-jax/constraints.txt" in text
  # What one host writes the others must see at once.
  for part in ("ttl-secs=0", "negative-ttl-secs=0", "data /mnt/bucket"):
    assert part in text[text.index("gcsfuse --implicit-dirs") :]


def test_run_starts_every_host_as_one_of_a_pod(tpu_vm):
  process, calls = tpu_vm("run", "train", "--workdir=/mnt/a b", codes=(2,))
  assert process.returncode == 2
  (call,) = calls
  assert "--worker=all" in call
  assert r"train --workdir=/mnt/a\ b  --pod" in call


def test_resume_makes_a_preempted_slice_anew(tpu_vm):
  process, calls = tpu_vm(
    "resume",
    "train",
    "--workdir=W",
    states=("ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"),
    codes=(255, 0),
  )
  assert process.returncode == 0, process.stderr
  kinds = [
    kind
    for call in calls
    for kind in (" delete ", " create ", " scp ", "~/venv/bin/dpr-jax ")
    if kind in call
  ]
  assert kinds.count("~/venv/bin/dpr-jax ") == 2
  assert kinds.index(" delete ") < kinds.index(" create ")
  assert kinds.index(" create ") < kinds.index(" scp ")


@pytest.mark.parametrize("code", [2, 130])
def test_resume_does_not_repeat_what_cannot_succeed(tpu_vm, code):
  process, calls = tpu_vm("resume", "train", codes=(code, 0))
  assert process.returncode == code
  assert sum("venv/bin/dpr-jax" in call for call in calls) == 1


def test_delete_and_usage(tpu_vm):
  process, calls = tpu_vm("delete")
  assert process.returncode == 0
  assert "delete dpr-jax" in calls[0]
  process, calls = tpu_vm()
  assert process.returncode == 2
  assert "launch/tpu_vm.sh create" in process.stdout
  assert not calls
  process, _ = tpu_vm("run")
  assert process.returncode == 2
