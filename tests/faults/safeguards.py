"""Row 18's list: every safeguard, how it is taken away, and what then breaks.

(file, line as it is, what replaces it, test).  A line may be a part of one;
it occurs once in the file.
"""

_ATOMIC = "tests/core/test_atomic_files.py"
_MANIFESTS = "tests/core/test_manifests.py"
_WORKDIR = "tests/core/test_workdir.py"
_MANIFESTS = "tests/core/test_manifests.py"
_ATOMIC = "tests/core/test_atomic_files.py"
_REFUSALS = "tests/retrieval/test_retrieve_refusals.py"
_RESOURCES = "tests/models/test_checkpoint_sources.py"
_HERE = "tests/faults/test_safeguards.py"

CHECKSUMS = {
  "of a manifest": (
    "core/manifests.py",
    "if found != recorded:",
    "if False:",
    f"{_MANIFESTS}::test_every_flipped_bit_of_a_manifest_is_found",
  ),
  "of files that a manifest lists": (
    "core/manifests.py",
    "if found != expected:",
    "if False:",
    f"{_MANIFESTS}::test_check_files",
  ),
  "of a stage's output, before it counts as done": (
    "core/manifests.py",
    'wrong = damaged_files(self.folder, old["files"])',
    "wrong = {}",
    f"{_WORKDIR}::test_outputs_that_are_gone_or_damaged_count",
  ),
  "of a part, before it is found": (
    "core/sharded_output.py",
    "return None if wrong else record",
    "return record",
    "tests/core/test_sharded_output.py::test_what_is_there_is_found",
  ),
  "of a checkpoint": (
    "models/checkpoint_files.py",
    "and found[name] != recorded[name]\n",
    "and False\n",
    "tests/models/test_checkpoints.py::test_a_flipped_bit_is_found",
  ),
  "of a download": (
    "models/checkpoint_sources.py",
    "if actual != expected:",
    "if False:",
    f"{_RESOURCES}::test_wrong_hash_is_refused_and_leaves_nothing",
  ),
  "of the cache": (
    "models/checkpoint_sources.py",
    "if workdir_lib.fingerprint_file(folder / name) == expected:",
    "if True:",
    f"{_RESOURCES}::test_damaged_cache_without_network_is_never_used",
  ),
  "of the data's tables": (
    "data/prepare.py",
    "workdir_module.check_files(workdir.data, manifest, beside)",
    "pass",
    "tests/data/test_prepare.py::"
    "test_what_lies_beside_the_rows_is_compared_before_use",
  ),
  "count of the records": (
    "data/datasets.py",
    "if found != expected:",
    "if False:",
    "tests/data/test_datasets.py::test_records_of_another_table",
  ),
  "of BM25": (
    "retrieval/bm25.py",
    "workdir_lib.check_files(folder, manifest)",
    "pass",
    "tests/retrieval/test_bm25.py::test_damaged_index_is_refused",
  ),
  "of results": (
    "evaluation/ranked_results.py",
    "if expected != (found := workdir_lib.fingerprint_file(path)):",
    "if found := None:",
    "tests/evaluation/test_evaluate.py::"
    "test_changed_results_are_refused_with_their_manifest",
  ),
}
LOCKS = {
  "of the workdir": (
    "core/workdir.py",
    "timeout=0)\n    lock.acquire()\n  except filelock.Timeout as error:",
    "timeout=0)\n  except filelock.Timeout as error:",
    f"{_HERE}::test_a_second_command_is_refused",
  ),
  "of the cache": (
    "models/checkpoint_sources.py",
    'filelock.FileLock(cache / f"{folder.name}.lock", timeout=LOCK_SECONDS)',
    "tempfile.TemporaryDirectory()",
    f"{_RESOURCES}::test_waits_for_the_lock_and_then_finds_the_work_done",
  ),
}
RENAMES = {
  "of a file": (
    "core/atomic_files.py",
    'temporary = path.with_name(f"{stem}{MARK}tmp-{_number()}{dot}{suffix}")',
    "temporary = path",
    f"{_ATOMIC}::test_replace_file_is_all_or_nothing",
  ),
  "of a folder": (
    "core/atomic_files.py",
    'temporary = path.with_name(f"{path.name}{MARK}tmp-{_number()}")',
    "temporary = path",
    f"{_ATOMIC}::test_replace_folder_is_all_or_nothing",
  ),
  "back, where it failed": (
    "core/atomic_files.py",
    "os.replace(old, path)\n",
    "pass\n",
    f"{_ATOMIC}::test_the_old_folder_comes_back_where_renaming_fails",
  ),
  "after the bytes": (
    "core/atomic_files.py",
    "_fsync_file(temporary)\n",
    "pass\n",
    f"{_HERE}::test_bytes_are_on_the_disk_before_the_name",
  ),
  "and of the folder's names": (
    "core/atomic_files.py",
    "fsync_folder(path.parent)\n    finally:",
    "pass\n    finally:",
    f"{_HERE}::test_bytes_are_on_the_disk_before_the_name",
  ),
}
LISTS = {
  "names in a pickle": (
    "embedding/vector_pickles.py",
    "if (module, name) not in _ALLOWED:\n",
    "if (module, name) not in _ALLOWED:\n"
    "      return super().find_class(module, name)\n"
    "    if False:\n",
    "tests/faults/test_hostile_pickles.py::test_hostile_pickles_are_refused",
  ),
  "a name that would be taken for a leftover": (
    "core/atomic_files.py",
    'if MARK in f".{name}":',
    "if False:",
    f"{_ATOMIC}::test_names_that_would_be_taken_for_leftovers_are_refused",
  ),
}
OWNERS = {
  "of a folder": (
    "core/atomic_files.py",
    "check_ours(path, owner)\n  temporary",
    "pass\n  temporary",
    f"{_ATOMIC}::test_a_folder_that_is_not_ours_is_kept",
  ),
  "of every file in it": (
    "core/atomic_files.py",
    "foreign = list(_foreign(path, listed))",
    "foreign = []",
    f"{_ATOMIC}::test_replace_folder_is_all_or_nothing",
  ),
  "of inputs inside": (
    "core/atomic_files.py",
    "if inner == outer or outer in inner.parents:",
    "if False:",
    f"{_ATOMIC}::test_inputs_inside_what_is_replaced_are_refused",
  ),
}
LINKS = {
  "BM25 to its corpus": (
    "retrieval/bm25.py",
    'if (indexed := manifest["inputs"].get("passages")) != corpus:',
    "if indexed := None:",
    "tests/retrieval/test_bm25.py::test_an_index_of_another_corpus_is_refused",
  ),
  "vectors to their model": (
    "index/faiss_stage.py",
    "if made_by != encoder.fingerprint:",
    "if False:",
    f"{_REFUSALS}::test_vectors_of_another_model_are_refused",
  ),
  "checkpoints to their training": (
    "models/checkpoint_files.py",
    "if found == ours:",
    "if True:",
    f"{_HERE}::test_a_checkpoint_of_another_training_is_named",
  ),
  "an index to its model": (
    "retrieval/dense_rankers.py",
    "if theirs == ours:",
    "if True:",
    f"{_REFUSALS}::test_an_index_of_another_model_is_refused",
  ),
  "an index to its vectors": (
    "retrieval/dense_rankers.py",
    "if indexed != made_from:",
    "if False:",
    f"{_REFUSALS}::test_index_of_other_vectors_is_refused",
  ),
}
ALL = {
  f"{kind}: {name}": patch
  for kind, patches in (
    ("checksum", CHECKSUMS),
    ("lock", LOCKS),
    ("rename", RENAMES),
    ("allow-list", LISTS),
    ("owner", OWNERS),
    ("link", LINKS),
  )
  for name, patch in patches.items()
}
