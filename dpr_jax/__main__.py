"""`python -m dpr_jax`: the same as `dpr-jax`."""

from dpr_jax.cli import main

if __name__ == "__main__":
  main.main()
