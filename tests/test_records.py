"""Compacted tables: a part that has not changed is not opened again, one that has changed wins, one that cannot be read stays in sight."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from study import records


def write_part(results: Path, trial_id: str, **columns: Any) -> Path:
    """One trial's row."""
    row = {"trial_id": trial_id, "config_id": "c", "seed": 1, "status": "COMPLETED", "n_layer": 1, "n_embd": 8, "n_head": 1}
    row |= {"params_total": 10, "params_non_embedding": 8, "n_tokens": 100, "val_loss": 2.0} | columns
    path = results / "trials" / f"{trial_id}.parquet"
    records.write(path, "trials", [row])
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened from here on."""
    names: list[str] = []
    original = records.read_file

    def read_file(path: Path, table: str, problems: list[str] | None = None) -> Any:
        names.append(path.name)
        return original(path, table, problems)

    monkeypatch.setattr(records, "read_file", read_file)
    return names


def losses(results: Path) -> dict[str, float]:
    return {row["trial_id"]: row["val_loss"] for row in records.read(results, "trials").to_pylist()}


def test_parts_are_opened_once_and_only_new_or_changed_ones_again(tmp_path: Path, opened: list[str]) -> None:
    for trial_id in "abc":
        write_part(tmp_path, trial_id)
    assert records.compact(tmp_path, "trials") == 3
    assert opened == ["a.parquet", "b.parquet", "c.parquet"]
    opened.clear()
    write_part(tmp_path, "b", val_loss=1.5)
    write_part(tmp_path, "d")
    assert losses(tmp_path) == {"a": 2.0, "b": 1.5, "c": 2.0, "d": 2.0}
    assert opened == ["trials.parquet", "b.parquet", "d.parquet"]
    records.compact(tmp_path, "trials")
    opened.clear()
    assert losses(tmp_path) == {"a": 2.0, "b": 1.5, "c": 2.0, "d": 2.0}
    assert opened == ["trials.parquet"]


def test_results_that_were_copied_without_their_times_are_read_anew(tmp_path: Path, opened: list[str]) -> None:
    for trial_id in "ab":
        write_part(tmp_path / "here", trial_id)
    records.compact(tmp_path / "here", "trials")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    opened.clear()
    assert losses(tmp_path / "there") == losses(tmp_path / "here")
    assert opened[:3] == ["trials.parquet", "a.parquet", "b.parquet"]


def test_a_part_that_cannot_be_read_is_named_whether_it_was_damaged_before_the_others_were_compacted_or_later(tmp_path: Path) -> None:
    write_part(tmp_path, "a")
    damaged = write_part(tmp_path, "b")
    for whole, n_compacted in ((b"PAR1", 1), (damaged.read_bytes(), 2)):
        damaged.write_bytes(whole)
        assert records.compact(tmp_path, "trials") == n_compacted
        damaged.write_bytes(whole[:100])
        with pytest.raises(records.RecordError, match=r"b\.parquet cannot be read as Parquet"):
            records.read(tmp_path, "trials")


def test_a_part_whose_file_is_not_reachable_is_named(tmp_path: Path) -> None:
    write_part(tmp_path, "a")
    (tmp_path / "trials" / "b.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(FileNotFoundError, match=r"b\.parquet"):
        records.read(tmp_path, "trials")


def test_a_compacted_table_that_lost_rows_or_is_of_another_version_does_not_hide_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    for trial_id in "abc":
        write_part(tmp_path, trial_id)
    records.compact(tmp_path, "trials")
    whole = tmp_path / "trials.parquet"
    pq.write_table(pq.read_table(whole).slice(0, 1), whole)
    assert sorted(losses(tmp_path)) == ["a", "b", "c"]
    with monkeypatch.context() as later:
        later.setattr(records, "SCHEMA_VERSION", "1.99")
        records.compact(tmp_path, "trials")
    opened.clear()
    assert sorted(losses(tmp_path)) == ["a", "b", "c"]
    assert len(opened) == 4
