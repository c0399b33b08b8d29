"""Imports run one way: each module, imported alone in a fresh process, leaves the packages below it alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "pandas", "matplotlib", "scipy", "optuna", "tensorboard", "rich", "tyro", "pyarrow")
MAY_IMPORT_RAY = {"study.trial", "study.monitor", "study.cluster", "study.searcher"}
ALLOWED: dict[str, set[str]] = {
    "study.command": {"tyro"},
    "study.run": {"tyro"},
    "study.records": {"pyarrow"},
    "study.folder": {"pyarrow"},
    "study.recorder": {"pyarrow"},
}
"""What may come along, of HEAVY, where the answer is not by kind of module. tyro brings rich."""

PROBE = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} | {n for n in sys.modules if n.count(".") == 1})))
"""


def imported_by(module: str) -> set[str]:
    """Top-level packages and their modules that importing `module` brings along."""
    done = subprocess.run([sys.executable, "-c", PROBE, module], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout))


def modules(package: str) -> list[str]:
    """Names of a package's modules."""
    return [f"{package}.{path.stem}" for path in sorted((ROOT / package).glob("*.py")) if path.stem not in ("__init__", "__main__")]


@pytest.mark.parametrize(
    "module", ["study.spec", "study.sweeps", "models.config", "study.provenance", "study.environment", "study.interrupt"]
)
def test_pure_modules_import_nothing_heavy(module: str) -> None:
    assert not imported_by(module) & set(HEAVY)


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_the_command_line_and_the_tables_bring_only_what_they_need(module: str) -> None:
    heavy = imported_by(module) & set(HEAVY)
    assert heavy - {"rich"} <= ALLOWED[module]
    assert "rich" not in heavy or "tyro" in heavy


def test_only_the_scheduling_modules_import_ray() -> None:
    lines = {
        module: [
            line
            for line in (ROOT / f"{module.replace('.', '/')}.py").read_text().splitlines()
            if line.startswith(("import ray", "from ray"))
        ]
        for package in ("study", "models", "analysis")
        for module in modules(package)
    }
    assert {module for module, found in lines.items() if found} == MAY_IMPORT_RAY


def test_training_needs_no_ray_and_the_driver_needs_no_torch() -> None:
    assert not imported_by("study.train") & {"ray", "pandas", "tyro", "tensorboard", "study.run", "study.trial", "study.monitor"}
    assert "torch" not in imported_by("study.monitor")
    assert "torch" not in imported_by("study.board")


def test_models_know_nothing_of_studies() -> None:
    for module in modules("models"):
        assert not {name for name in imported_by(module) if name.partition(".")[0] in ("study", "analysis", "ray")}, module


@pytest.mark.parametrize("module", ["analysis.report", "analysis.conclusions"])
def test_analysis_reads_files_only(module: str) -> None:
    found = imported_by(module)
    assert not found & {"torch", "ray", "tyro"}
    assert {name for name in found if name.startswith("study.")} <= {
        "study.records",
        "study.stories",
        "study.bracket",
        "study.search_settings",
    }


def test_importing_files_in_packages_is_all_there_is_to_do() -> None:
    for package in ("study", "models", "analysis"):
        assert (ROOT / package / "__init__.py").read_text() == ""
