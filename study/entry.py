"""The command `scaling-study run|report|generate|score|export`, and a look whether Python found our own packages, with which all begin.

`python -m` looks for packages in the working directory first, where a person may keep a models.py; `scaling-study` does not look there.
Imported before anything else of ours (see isort's settings in pyproject.toml), for what comes next may already be somebody else's.
"""

import importlib.util
import os
import runpy
import sys
from pathlib import Path

COMMANDS = {"run": "study.run", "report": "analysis", "generate": "models", "score": "models", "export": "models"}
HOME = Path(__file__).resolve().parents[1]


def hidden_package() -> str:
    """A sentence on a file of the working directory that Python takes for one of our packages, or ""."""
    for name in ("models", "analysis"):
        found = importlib.util.find_spec(name)
        place = Path(found.origin).resolve() if found and found.origin else None
        if place and HOME not in place.parents:
            command = next((word for word, module in COMMANDS.items() if sys.argv[0].endswith(f"{module.replace('.', os.sep)}.py")), "run")
            return (
                f"{place} hides the package {name} of this program, for python -m looks into the working directory first; "
                f"give the same flags to the command scaling-study {command}, which does not, or work in another folder"
            )
    return ""


def main() -> None:
    """Do what `python -m study.run` or `python -m analysis` does, whatever lies in the working directory."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        wanted_help = sys.argv[1:2] in (["--help"], ["-h"])
        print(
            "usage: scaling-study run [STUDY] | report RESULTS | generate RESULTS | score RESULTS | export RESULTS, each with its flags",
            file=sys.stdout if wanted_help else sys.stderr,
        )
        raise SystemExit(0 if wanted_help else 2)
    os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that a run starts
    module = COMMANDS[sys.argv[1]]
    if module != "models":  # whose own commands have these names
        del sys.argv[0]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if problem := hidden_package():
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)
