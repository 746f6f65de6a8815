"""A forked command is what a process of its own would be."""

import dpr_jax


def test_it_ends_as_a_process_does(forked_call, tmp_path):
  done = forked_call("--version")
  assert done.args == ["--version"]
  assert (done.returncode, done.stdout) == (0, f"{dpr_jax.__version__}\n")
  done = forked_call("check", "--workdir=w", cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith("dpr-jax: ")
  assert "Traceback" not in done.stderr


def test_variables_are_its_own(forked_call, config_file, fresh_workdir):
  """JAX's as well, which the forking process has read at its import."""
  flags = (f"--config={config_file}", f"--workdir={fresh_workdir.root}")
  done = forked_call(
    "embed", *flags, "--model=dense-start", JAX_PLATFORMS="tpu"
  )
  assert done.returncode == 2, done.stderr
  assert done.stderr.splitlines()[-1].startswith("dpr-jax: JAX ")
