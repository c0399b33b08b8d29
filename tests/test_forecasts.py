"""Forecasts are written before a trial runs, scored after, and never rewritten."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.estimate import Code, Refusal
from analysis.findings import forecasts
from analysis.findings.size_law import Fitted, fit_size_law
from analysis.table import configurations as replicates
from analysis.table import load as table
from study import records
from tests.conftest import BATCH, BLOCK, N_STEPS, synthetic_row

SHAPES = [(2, 16, 2), (2, 32, 4), (2, 64, 4), (2, 96, 4), (2, 128, 4), (2, 160, 4)]
TARGET = (2, 256, 4)
NOW = datetime(2026, 12, 1, tzinfo=UTC)
DATA_LENGTH = N_STEPS * BATCH * BLOCK


def write(results: Path, shapes: list[tuple[int, int, int]], finished: datetime = NOW + timedelta(hours=1)) -> tuple[Any, Any]:
    """Three seeds of each shape; returns their configurations and trials."""
    rng = np.random.default_rng(1)
    rows = [{**synthetic_row(shape, seed, rng), "finished_at": finished} for shape in shapes for seed in range(3)]
    records.write(results / "trials.parquet", "trials", rows)
    return loaded(results)


def loaded(results: Path) -> tuple[Any, Any]:
    trials = table.load(results).trials
    return replicates.average(trials), trials


def made(cells: Any, text: str = "2x256h4", now: datetime = NOW) -> Any:
    """A forecast from the law of size, or its refusal."""
    fitted = fit_size_law("joint", "all", cells)
    assert isinstance(fitted, Fitted)
    return forecasts.make(fitted, forecasts.parse(text, cells), forecasts.Source("abc", now, "synthetic"))


def test_a_forecast_states_point_interval_law_data_time_and_commit(tmp_path: Path) -> None:
    forecast = made(write(tmp_path, SHAPES)[0])
    assert forecast["low"] < forecast["point"] < forecast["high"]
    assert (forecast["law"], forecast["git_commit"], forecast["made_at"]) == ("M1", "abc", NOW.isoformat())
    assert forecast["configuration"]["params_non_embedding"] == 2 * (12 * 256**2 + 512) + 256
    assert len(forecast["data"]["config_ids"]) == 6
    assert forecast["outcome"] is None


HORIZON = Path(__file__).parents[1] / "benchmarks/results/study_horizon.parquet"
GRID = [(depth, width, 4) for depth in (1, 2, 4, 8) for width in (16, 32, 64)]


def test_where_shapes_vary_the_law_of_fixed_exponents_forecasts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, _ = write(tmp_path, GRID)
    forecast = forecasts.by_shape(cells, forecasts.parse("4x96h4", cells), forecasts.Source("abc", NOW))
    assert isinstance(forecast, dict)
    assert (forecast["law"], len(forecast["data"]["config_ids"])) == ("F", 12)
    assert main([str(tmp_path), "--forecast", "4x96h4", "--no-report", "--bootstrap", "0"]) == 0
    assert "C * N^-0.34, on record" in capsys.readouterr().out
    (scored,) = forecasts.scored([forecast], *write(tmp_path, [*GRID, (4, 96, 4)]))
    assert scored["outcome"]["covered"] in ((None,) if forecast["interval_refused"] else (True, False))
    assert abs(scored["outcome"]["error_percent"]) < 10


def test_a_shape_that_ran_shorter_lengths_is_forecast_by_the_law_of_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = records.read_file(HORIZON, "trials").to_pylist()
    records.write(tmp_path / "trials.parquet", "trials", [row for row in rows if row["n_tokens"] < 6_000_000])
    assert main([str(tmp_path), "--forecast", "8x64h4@6144000", "--no-report"]) == 0
    assert "by D: E_s + B_s * D^-beta, on record" in capsys.readouterr().out
    forecast = forecasts.read(tmp_path / "forecasts.json")[0]
    assert forecast["interval_refused"]  # no length was forecast from three shorter ones yet
    records.write(tmp_path / "trials.parquet", "trials", rows)
    (scored,) = forecasts.scored([forecast], *loaded(tmp_path))
    assert abs(scored["outcome"]["error_percent"]) < 10


@pytest.mark.parametrize(("made_at", "counted"), [(NOW, True), (NOW + timedelta(days=1), False)], ids=["in time", "after the trial ended"])
def test_a_forecast_is_scored_once_its_trial_has_run_on_its_text_and_keeps_what_it_said(
    tmp_path: Path, made_at: datetime, counted: bool
) -> None:
    path = tmp_path / "forecasts.json"
    cells, trials = write(tmp_path, SHAPES)
    forecast = made(cells, now=made_at)
    forecasts.add(path, forecast, cells)
    assert forecasts.scored(forecasts.read(path), cells, trials)[0]["outcome"] is None
    cells, trials = write(tmp_path, [*SHAPES, TARGET])
    assert forecasts.scored([forecast], cells, trials.assign(data_sha256="another"))[0]["outcome"] is None
    (scored,) = forecasts.scored(forecasts.read(path), cells, trials)
    assert {**scored, "outcome": None} == forecast
    assert (scored["outcome"]["counted"], scored["outcome"]["covered"]) == (counted, True)
    assert abs(scored["outcome"]["error_percent"]) < 3
    assert forecasts.read(path) == [forecast]
    forecasts.record_outcomes(path, [scored])
    assert forecasts.read(path) == [scored]


def test_a_forecast_that_has_not_been_tested_may_be_replaced(tmp_path: Path) -> None:
    cells, _ = write(tmp_path, SHAPES)
    for now in (NOW, NOW + timedelta(hours=2)):
        forecasts.add(tmp_path / "forecasts.json", made(cells, now=now), cells)
    rows = forecasts.read(tmp_path / "forecasts.json")
    assert [row["made_at"] for row in rows] == [(NOW + timedelta(hours=2)).isoformat()]


@pytest.mark.parametrize(
    ("text", "lengths", "code"),
    [
        ("48x1024h8", 1, Code.EXTRAPOLATION),  # beyond one observed log range
        ("2x256h4@5", 1, Code.FIXED_TOKENS),  # another length
        (f"2x256h4@{DATA_LENGTH}", 1, None),
        ("2x256h4@4000000", 3, None),
        ("2x256h4@400000000", 3, Code.EXTRAPOLATION),
        ("2x256h4@1000", 3, Code.EXTRAPOLATION),
    ],
)
def test_of_what_the_law_says_nothing_a_forecast_is_refused(tmp_path: Path, text: str, lengths: int, code: Code | None) -> None:
    _, trials = write(tmp_path, SHAPES)
    longer = []
    for tokens in (DATA_LENGTH, 1_000_000, 4_000_000)[:lengths]:
        loss = trials["val_loss"] + 0.3 * (tokens / 1e6) ** -0.4
        longer.append(trials.assign(config_id=trials["config_id"] + f"@{tokens}", n_tokens=tokens, val_loss=loss))
    found = made(replicates.average(pd.concat(longer)), text)
    assert (found.code if isinstance(found, Refusal) else None) == code


@pytest.mark.parametrize(("text", "words"), [("8x256", "not of the form"), ("8x250h8", "not divisible"), ("axbhc", "not of the form")])
def test_a_malformed_shape_is_explained(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        forecasts.parse(text, write(tmp_path, SHAPES)[0])


def test_a_foreign_file_of_forecasts_is_not_overwritten(tmp_path: Path) -> None:
    cells, _ = write(tmp_path, SHAPES)
    (tmp_path / "forecasts.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="cannot be read as forecasts"):
        forecasts.add(tmp_path / "forecasts.json", made(cells), cells)
    assert (tmp_path / "forecasts.json").read_text() == '{"mine": 1}'


def test_the_command_line_records_scores_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, SHAPES)
    arguments = [str(tmp_path), "--no-report", "--bootstrap", "0"]
    assert main([*arguments, "--forecast", "2x256h4"]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(
        r"forecast 2x256h4: \d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\] nats by M1: E \+ A \* N\^-alpha, on record in forecasts.json", said
    )
    write(tmp_path, [*SHAPES, TARGET], finished=datetime.now(UTC) + timedelta(hours=1))
    assert main(arguments) == 0
    assert "1 forecast on record, 1 with an outcome, 1 of them inside" in capsys.readouterr().out
    assert json.loads((tmp_path / "report" / "fits.json").read_text())["forecasts"][0]["outcome"]["covered"]
    assert main([*arguments, "--forecast", "2x256h4"]) == 1
    assert capsys.readouterr().err.startswith("error: 2x256h4 has run already")
