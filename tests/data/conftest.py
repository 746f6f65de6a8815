"""A tokenizer for the reader, with short inputs."""

import pytest

from dpr_jax.data import reader_tokenization, tokenization


@pytest.fixture(scope="session")
def reader_tokenizer(tiny_checkpoint):
  return reader_tokenization.ReaderTokenizer(
    tokenization.load_tokenizer(tiny_checkpoint),
    length=40,
    question_length=8,
    overlap=4,
  )
