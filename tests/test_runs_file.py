"""Runs of other programs: four forms of table, columns by name, one sentence for whatever is wrong, and the truth about what they mean."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.findings import conclude as conclusions
from analysis.findings.fit_summary import Options
from analysis.table import load as tables
from analysis.table.runs_file import parse_columns

SHARED = Path(os.environ.get("SCALING_STUDY_SHARED", Path(__file__).parents[2] / "shared"))
NAMES = "N=Model Size,D=tokens,L=loss,n_layer=depth,n_embd=width"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def runs() -> pd.DataFrame:
    """A grid of depth, width and text in two seeds."""
    depth, width, _ = (grid.ravel() for grid in np.meshgrid([1, 2, 4, 8], [16, 32, 64], [1, 2], indexing="ij"))
    size = 12 * depth * width**2
    loss = (0.5 + 0.6 * (size / 1e5) ** -0.3) * np.exp(np.random.default_rng(0).normal(0, 0.003, 24))
    return pd.DataFrame({"Model Size": size, "tokens": 1e6, "loss": loss, "depth": depth, "width": width})


def conclude(path: Path, columns: Mapping[str, str] | None = None, **options: Any) -> dict[str, Any]:
    return conclusions.conclude(tables.load(path, columns), Options(n_bootstrap=0, **options))


def levers(tree: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The first row of each factor."""
    return {row["factor"]: row["gain_per_doubling"] for row in reversed(tree["levers"])}


# ---- reading ----


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_of_table_reads_alike(form: str, tmp_path: Path) -> None:
    path, frame = tmp_path / f"runs.{form}", runs()
    {
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
    }[form]()
    read = tables.load(path, parse_columns(NAMES)).trials
    assert (len(read), read["config_id"].nunique(), sorted(read["seed"].unique())) == (24, 12, [1, 2])
    assert read["val_loss"].to_numpy() == pytest.approx(frame["loss"].to_numpy()[read["trial_id"].str[3:].astype(int) - 1], rel=1e-9)
    assert list(read["n_layer"].sort_values().unique()) == [1, 2, 4, 8]


def test_training_compute_stands_for_tokens(tmp_path: Path) -> None:
    runs().assign(flop=lambda own: 6 * own["Model Size"] * 1e6).to_csv(tmp_path / "runs.csv", index=False)
    read = tables.load(tmp_path / "runs.csv", parse_columns("N=Model Size,C=flop,L=loss"))
    assert set(read.trials["n_tokens"]) == {1_000_000}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("N=Model Sise,D=tokens,L=loss", "no column 'Model Sise'; did you mean 'Model Size'"),
        ("N=Model Size,L=loss", r"no column for D \(or C, training FLOP\)"),
        ("N=Model Size,D=tokens,L=name", "row 1 of column 'name' holds 'a', which is no number"),
    ],
)
def test_what_is_wrong_with_columns_is_said_in_one_sentence(
    columns: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs().assign(name="a").to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(ValueError, match=message):
        tables.load(tmp_path / "runs.csv", parse_columns(columns))
    assert main([str(tmp_path / "runs.csv"), "--columns", columns]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n", "holds no runs"),
        ("l\u00f6ss\n1\n".encode("latin-1"), "is not UTF-8"),
        (None, "is a folder; give the file"),
    ],
)
def test_a_file_that_holds_no_runs_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tables.load(path, {"val_loss": "loss"} if content is None else None)


def test_a_wrong_field_is_a_usage_error_that_names_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["runs.csv", "--columns", "n_layers=depth"])
    assert stop.value.code == 2
    assert "did you mean 'n_layer'" in capsys.readouterr().err


def test_without_a_column_what_needs_it_is_refused_by_its_name(tmp_path: Path) -> None:
    runs().to_csv(tmp_path / "runs.csv", index=False)
    tree = conclude(tmp_path / "runs.csv", parse_columns("N=Model Size,D=tokens,L=loss"))
    found = levers(tree)
    assert all(name in found[name]["refused"]["reason"] for name in ("n_layer", "n_embd", "n_head"))
    assert found["params"]["verdict"] == "gain"
    assert tree["best"]["n_layer"] is None
    assert "n_layer" in tree["shape"]["equal_size"]["refused"]["reason"]


def test_the_means_are_exported_for_other_tools(tmp_path: Path) -> None:
    runs().to_csv(tmp_path / "runs.csv", index=False)
    assert main([str(tmp_path / "runs.csv"), "--columns", NAMES, "--export", str(tmp_path / "tidy.csv")]) == 0
    tidy = pd.read_csv(tmp_path / "tidy.csv")
    means = runs().groupby(["depth", "width"])["loss"].mean()
    assert tidy.set_index(["n_layer", "n_embd"])["val_loss"].sort_index().to_numpy() == pytest.approx(means.to_numpy(), rel=1e-12)
    assert set(tidy["n_seeds"]) == {2}


# ---- what they mean ----


def test_the_published_fit_comes_from_the_command_line(tmp_path: Path) -> None:
    points = pd.read_csv(shared("reference/chinchilla_epoch.csv"))
    known = json.loads(shared("reference/chinchilla_epoch.json").read_text())["epoch"]["exact_optimum"]
    points[points["loss"] < points["loss"].nlargest(5).min()].to_csv(tmp_path / "runs.csv", index=False)
    columns = "N=Model Size,C=Training FLOP,L=loss"
    assert main([str(tmp_path / "runs.csv"), "--columns", columns, "--delta", "0.001", "--bootstrap", "40"]) == 0
    joint = json.loads((tmp_path / "report" / "fits.json").read_text())["fits"]["joint"]
    found = {name: part["value"] for name, part in joint["parameters"].items()}
    assert {name: found[name] for name in ("E", "alpha", "beta")} == pytest.approx({n: known[n] for n in ("E", "alpha", "beta")}, rel=1e-6)
    assert found["A"] * joint["reference"]["params_non_embedding"] ** found["alpha"] == pytest.approx(known["A"], rel=1e-6)
    assert found["B"] * joint["reference"]["n_tokens"] ** found["beta"] == pytest.approx(known["B"], rel=1e-6)


def test_tokens_that_follow_parameters_are_not_credited_to_either() -> None:
    tree = conclude(shared("cases/ladder_20_tokens_per_parameter.csv"))
    found = levers(tree)
    assert {found[name]["refused"]["code"] for name in ("params", "n_tokens")} == {"n_and_d_collinear"}
    both = found["params"]["bound"]["both"]
    assert both["low"] < 1.49 < both["high"]
    assert tree["fits"] == {}
    assert {tree[name]["refused"]["code"] for name in ("compute_optimal",)} == {"n_and_d_collinear"}


@pytest.mark.parametrize("moving", [0.0, 0.05])
def test_where_no_two_runs_share_a_length_the_law_in_both_says_what_each_buys(moving: float, tmp_path: Path) -> None:
    rng, n, d = np.random.default_rng(2), np.geomspace(1e5, 1e7, 7), np.geomspace(1e7, 1e9, 7)
    size, text = (grid.ravel() * np.exp(rng.uniform(-0.1, 0.1, 49)) for grid in np.meshgrid(n, d))

    def truth(size: Any, text: Any) -> Any:
        exponent = 0.3 + moving * np.log(size / 1e6)
        return 1.2 + 0.5 * (size / 1e6) ** -0.3 + 0.4 * (text / 1e8) ** -exponent

    loss = truth(size, text) * np.exp(rng.normal(0, 0.003, 49))
    pd.DataFrame({"N": size, "D": text, "L": loss}).to_csv(tmp_path / "runs.csv", index=False)
    found = levers(conclude(tmp_path / "runs.csv", parse_columns("N=N,D=D,L=L")))
    at = [float(np.exp(np.mean(np.log(values)))) for values in (size, text)]
    for i, factor in enumerate(("params", "n_tokens")):
        ends = [[value * 2 ** (side / 2) if i == j else value for j, value in enumerate(at)] for side in (-1, 1)]
        assert found[factor]["low"] < truth(*ends[0]) - truth(*ends[1]) < found[factor]["high"]


def test_placeholder_shapes_are_unknown_shapes() -> None:
    tree = conclude(shared("cases/placeholder_shapes.csv"))
    found = levers(tree)
    assert {found[name]["refused"]["code"] for name in ("n_layer", "n_embd", "n_head")} == {"column_missing"}
    assert tree["shape"]["verdict"] == "not_told"
    assert {tree["shape"][part]["refused"]["code"] for part in ("law", "equal_size")} == {"column_missing"}
    assert {found[name]["verdict"] for name in ("params", "n_tokens")} == {"gain"}


def test_checkpoints_of_one_run_are_not_independent() -> None:
    tree = conclude(shared("cases/checkpoints_of_runs.csv"))
    assert any("checkpoints of one run" in problem for problem in tree["problems"])
    joint, last = (tree["fits"][name]["slope"] for name in ("joint", "length:30000000"))
    assert joint["low"] is None
    assert -joint["value"] * joint["loss"] * math.log(2) == pytest.approx(0.07, abs=0.03)  # nats per doubling
    assert last["low"] < -0.07 / (last["loss"] * math.log(2)) < (last["high"] or 0.0)
    assert all(row["gain_per_doubling"].get("low") is None for row in tree["levers"] if row["factor"] in ("n_embd", "params"))


def test_where_width_alone_matters_depth_buys_nothing() -> None:
    tree = conclude(shared("cases/width_only.csv"))
    found = levers(tree)
    assert (found["n_layer"]["verdict"], found["n_embd"]["verdict"], tree["shape"]["verdict"]) == ("not_told", "gain", "wide")
    assert found["n_embd"]["low"] > 10 * abs(found["n_layer"]["value"])
