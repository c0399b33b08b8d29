"""Loading results: what may be fitted, what is left out and why, and one clear sentence for each kind of bad input."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.estimate import Refusal
from analysis.table import load as table
from analysis.table.configurations import Configurations, Noise, average, measure_noise
from study import records
from tests.conftest import SWEEPS, synthetic_row


def rows_of(seeds: int = 2, sweep: str = "width") -> list[dict[str, Any]]:
    """Rows of one synthetic sweep."""
    rng = np.random.default_rng(3)
    return [synthetic_row(shape, seed, rng) for shape in SWEEPS[sweep] for seed in range(seeds)]


def put(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows without the checks of a run, as another program might."""
    records.write_table(folder / "trials.parquet", records.to_table("trials", rows))
    return folder


def put_with(folder: Path, column: str, values: list[Any]) -> Path:
    """Write rows whose column holds other values, of whatever kind."""
    data = records.to_table("trials", rows_of())
    changed = data.set_column(data.column_names.index(column), column, pa.array(values, from_pandas=False))
    pq.write_table(changed, folder / "trials.parquet")
    return folder


def reasons(loaded: table.Table) -> dict[str, str]:
    return {e.trial_id: e.reason for e in loaded.excluded}


# ---- what is read ----


def test_a_results_folder_loads_whole(synthetic_results: Path) -> None:
    loaded = table.load(synthetic_results)
    assert (len(loaded.trials), loaded.excluded, loaded.problems, loaded.name) == (30, [], (), "synthetic")
    assert table.counts(loaded)["sizes"] == 7
    assert len(loaded.curves) == 30 * 12
    assert set(loaded.samples.temperature) == {0.5, 0.8}


def test_parts_newer_than_the_compacted_table_win(tmp_path: Path) -> None:
    rows = rows_of()
    put(tmp_path, rows)
    changed = {**rows[0], "val_loss": 9.0}
    records.write(tmp_path / "trials" / f"{rows[0]['trial_id']}.parquet", "trials", [changed])
    loaded = table.load(tmp_path)
    assert len(loaded.trials) == len(rows)
    assert loaded.trials.set_index("trial_id").val_loss[rows[0]["trial_id"]] == 9.0


def test_a_file_of_another_program_needs_only_the_required_columns(tmp_path: Path) -> None:
    required = {name: [row[name] for row in rows_of()] for name in records.required_columns("trials")}
    narrow = pa.table(required).cast(
        pa.schema([(k, pa.int32() if pa.types.is_integer(pa.array(v).type) else pa.array(v).type) for k, v in required.items()])
    )
    pq.write_table(narrow, tmp_path / "foreign.parquet")
    loaded = table.load(tmp_path / "foreign.parquet")
    assert len(loaded.trials) == 8
    assert loaded.curves.empty


def test_a_large_folder_reads_only_the_parts_that_may_be_newer(tmp_path: Path) -> None:
    rows = rows_of()
    put(tmp_path, [{**row, "trial_id": f"t{i}"} for i, row in enumerate(rows * 130)])
    for i in range(1040):
        (tmp_path / "trials").mkdir(exist_ok=True)
        (tmp_path / "trials" / f"t{i}.parquet").touch()
        os.utime(tmp_path / "trials" / f"t{i}.parquet", (0, 0))
    records.write(tmp_path / "trials" / "new.parquet", "trials", [{**rows[0], "trial_id": "new"}])
    loaded = table.load(tmp_path)
    assert len(loaded.rows) == 1041
    assert loaded.problems == ()


# ---- rows that may not be fitted ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"val_loss": float("nan")}, "val_loss is missing"),
        ({"val_loss": float("inf")}, "val_loss is infinite"),
        ({"val_loss": -1.0}, "val_loss is not positive"),
        ({"params_non_embedding": 0}, "params_non_embedding is missing or not positive"),
        ({"n_tokens": -5}, "n_tokens is missing or not positive"),
        ({"val_loss": 0.3, "val_loss_se": 0.01, "loss_floor": 0.41}, "lies below the text's entropy"),
        ({"status": "STOPPED"}, "stopped early by a scheduler"),
        ({"status": "FAILED", "reason": "RuntimeError: out of memory"}, "failed: RuntimeError: out of memory"),
        ({"status": "DIVERGED", "val_loss": None}, "diverged"),
        ({"status": "done"}, "status done is not one of COMPLETED"),
    ],
)
def test_a_row_that_may_not_be_fitted_stays_with_its_reason(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    rows = rows_of()
    rows[0] |= change
    loaded = table.load(put(tmp_path, rows))
    assert words in reasons(loaded)[rows[0]["trial_id"]]
    assert len(loaded.trials) == len(rows) - 1
    assert len(loaded.rows) == len(rows)


@pytest.mark.parametrize("column", ["params_non_embedding", "n_layer", "seed", "config_id"])
@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_row_without_a_needed_value_is_left_out_and_the_rest_is_fitted(tmp_path: Path, column: str, missing: float | None) -> None:
    known = [row[column] if column == "config_id" else float(row[column]) for row in rows_of()[1:]]
    loaded = table.load(put_with(tmp_path, column, [None if column == "config_id" else missing, *known]))
    assert f"its {column} is missing" in loaded.excluded[0].reason
    assert len(loaded.trials) == 7
    assert loaded.trials["n_layer"].dtype == loaded.trials["seed"].dtype == np.int64


def test_a_loss_that_may_be_below_the_entropy_by_luck_is_kept(tmp_path: Path) -> None:
    rows = rows_of()
    rows[0] |= {"val_loss": 0.4, "val_loss_se": 0.01, "loss_floor": 0.41}
    assert table.load(put(tmp_path, rows)).excluded == []


def test_stale_rows_and_rows_of_other_studies_are_named_and_left_out(tmp_path: Path) -> None:
    rows = rows_of()
    rows[0]["data_sha256"], rows[1]["recipe_version"] = "older", 0
    put(tmp_path, rows)
    present = {"data_sha256": "synthetic", "recipe_version": 1, "trial_ids": [row["trial_id"] for row in rows[:-1]]}
    (tmp_path / "study.json").write_text(json.dumps(present))
    loaded = table.load(tmp_path)
    left_out = reasons(loaded)
    assert left_out[rows[0]["trial_id"]] == "stale: data older, the study now has synthetic"
    assert left_out[rows[1]["trial_id"]] == "stale: recipe version 0, the study now has 1"
    assert left_out[rows[-1]["trial_id"]] == "not in the present study"
    assert table.counts(loaded)["stale"] == 3


def test_rows_of_another_text_never_mix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [synthetic_row((2, 64, 4), seed, rng) for seed in range(3)]
    other = synthetic_row((2, 64, 4), 3, rng) | {"trial_id": "other", "data_sha256": "another"}
    records.write(tmp_path / "trials.parquet", "trials", [*rows, other])
    read = table.load(tmp_path)
    assert set(read.trials["data_sha256"]) == {"synthetic"}
    assert [e.reason for e in read.excluded] == ["stale: data another, most trials are of synthetic"]
    (tmp_path / "study.json").write_text('{"data_sha256": "another"}')
    assert list(table.load(tmp_path).trials["trial_id"]) == ["other"]


def test_repeated_trial_ids_are_named_and_the_last_row_used(tmp_path: Path) -> None:
    rows = rows_of()
    loaded = table.load(put(tmp_path, [*rows, {**rows[0], "val_loss": 5.0}]))
    assert "repeats 1 trial ids" in loaded.problems[0]
    assert loaded.trials.set_index("trial_id").val_loss[rows[0]["trial_id"]] == 5.0


def test_a_config_id_over_unlike_models_is_taken_apart(tmp_path: Path) -> None:
    loaded = table.load(put(tmp_path, [{**row, "config_id": "same"} for row in rows_of()]))
    assert loaded.trials.config_id.nunique() == 4
    assert "cover several shapes" in loaded.problems[0]


# ---- files that cannot be used ----


def test_nothing_to_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no results folder"):
        table.load(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no trials"):
        table.load(tmp_path)
    (tmp_path / "trials.parquet").mkdir()
    with pytest.raises(records.RecordError, match="is a folder where a Parquet file should be"):
        table.load(tmp_path)


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    pq.write_table(records.to_table("trials", rows_of()).drop_columns(["n_layer"]), tmp_path / "trials.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['n_layer'\].*it has \['trial_id'"):
        table.load(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("n_layer", "two", "column 'n_layer' that are not int64"),
        ("params_total", 0.5, "column 'params_total'"),
        ("trial_id", None, "without"),
    ],
)
def test_a_required_column_of_another_kind_is_named(tmp_path: Path, column: str, value: Any, words: str) -> None:
    with pytest.raises(records.RecordError, match=words):
        table.load(put_with(tmp_path, column, [value] * 8))


def test_an_optional_column_of_another_kind_is_named_and_read_as_empty(tmp_path: Path) -> None:
    loaded = table.load(put_with(tmp_path, "sweeps", ["width"] * 8))
    assert len(loaded.trials) == 8
    assert "column 'sweeps'" in loaded.problems[0]
    assert "read as empty" in loaded.problems[0]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("trials/bad.parquet", b"PAR1 and no more", "bad.parquet cannot be read as Parquet"),
        ("study.json", b"{", "study.json cannot be read as JSON"),
        ("study.json", b"[]", "study.json holds list, not an object; all rows are taken as belonging to the study"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_reported(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    put(tmp_path, rows_of())
    (tmp_path / "trials").mkdir()
    (tmp_path / file).write_bytes(content)
    loaded = table.load(tmp_path)
    assert len(loaded.trials) == 8
    assert words in loaded.problems[0]


def test_a_newer_major_version_among_older_ones_is_refused_by_name(tmp_path: Path) -> None:
    rows = rows_of()
    put(tmp_path, rows[:-1])
    newer = records.to_table("trials", rows[-1:]).replace_schema_metadata({"schema_version": "2.0"})
    records.write_table(tmp_path / "trials" / "new.parquet", newer)
    loaded = table.load(tmp_path)
    assert len(loaded.trials) == len(rows) - 1
    assert "new.parquet has schema version 2.0" in loaded.problems[0]


# ---- configuration means and noise ----


def averaged(rows: list[dict[str, Any]], loss: Callable[[dict[str, Any]], float] = lambda row: float(row["val_loss"])) -> Configurations:
    return average(records.to_table("trials", [{**row, "val_loss": loss(row)} for row in rows]).to_pandas())


def noise_of(rows: list[dict[str, Any]], loss: Callable[[dict[str, Any]], float]) -> Noise:
    noise = measure_noise(averaged(rows, loss))
    assert isinstance(noise, Noise)
    return noise


def test_configuration_means_average_seeds_and_sort_by_size() -> None:
    cells = averaged(rows_of(seeds=3))
    assert list(cells.n_seeds) == [3, 3, 3, 3]
    assert np.all(np.diff(cells.columns["params_non_embedding"]) > 0)
    assert cells.loss[0] == pytest.approx(np.mean(cells.losses(0)))


def test_repeats_of_one_seed_are_no_replicates() -> None:
    rows = rows_of(seeds=1)
    again = [{**row, "trial_id": row["trial_id"] + "again", "val_loss": row["val_loss"] + 0.001} for row in rows]
    cells = averaged(rows + again)
    assert list(cells.n_seeds) == [1, 1, 1, 1]
    assert cells.repeat_sd == pytest.approx(0.001 / np.sqrt(2))
    assert isinstance(measure_noise(cells), Refusal)


def test_seeds_of_exactly_equal_loss_measure_no_noise() -> None:
    noise = measure_noise(averaged(rows_of(seeds=3), lambda row: 1.0))
    assert isinstance(noise, Refusal)
    assert "same loss" in noise.reason


def test_the_noise_interval_covers_the_true_seed_sd() -> None:
    rng, rows = np.random.default_rng(0), rows_of(seeds=4)
    found = [noise_of(rows, lambda row: 1.0 + rng.normal(0, 0.01)) for _ in range(100)]
    assert 88 <= sum(noise.low <= 0.01 <= noise.high for noise in found) <= 100


def test_a_seed_that_shifts_all_configurations_alike_does_not_count_in_comparisons() -> None:
    rng, shift = np.random.default_rng(1), (0.0, 0.05, -0.05, 0.02)
    noise = noise_of(rows_of(seeds=4), lambda row: 1 + shift[row["seed"]] + rng.normal(0, 0.002))
    assert noise.paired
    assert noise.difference_sd < 0.1 * noise.seed_sd
