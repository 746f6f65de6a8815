"""Where downloads and compiled programs are kept."""

from dpr_jax.core import user_cache


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv("DPR_JAX_CACHE", str(tmp_path / "own"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "general"))
  assert user_cache.cache_folder() == tmp_path / "own"
  monkeypatch.delenv("DPR_JAX_CACHE")
  assert user_cache.cache_folder() == tmp_path / "general" / "dpr-jax"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert user_cache.cache_folder() == tmp_path / ".cache" / "dpr-jax"
