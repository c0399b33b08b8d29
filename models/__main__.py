"""Models after their study: `python -m models generate|score|export RESULTS ...`; see `models.trained` for the same as Python calls.

python -m models generate results/quick --prompt "Once upon a time"
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from models.trained import load

Results = Annotated[str, tyro.conf.Positional]


def generate(
    results: Results,
    prompt: str = "",
    trial: str = "best",
    tokens: int = 256,
    temperature: float = 0.8,
    seed: int = 0,
    device: str = "cpu",
    module: str = "",
) -> None:
    """Let a trained model continue a prompt.

    Args:
        results: a results folder, or one weights file.
        prompt: its beginning; without one the model begins a document.
        trial: the beginning of a trial's id; best is the one with the lowest validation loss.
        tokens: most tokens to add.
        temperature: 0 takes the likeliest token each time, 1 samples as the model predicts.
        seed: of the sampling.
        device: cpu, cuda or mps.
        module: FILE:CLASS, where it is a model of your own.
    """
    print(prompt + load(results, trial, device, module).generate(prompt, tokens, temperature, seed))


def score(results: Results, text: Path, trial: str = "best", device: str = "cpu", module: str = "") -> None:
    """Loss of a trained model on a text, with its standard error.

    Args:
        results: a results folder, or one weights file.
        text: a UTF-8 text file.
        trial: the beginning of a trial's id; best is the one with the lowest validation loss.
        device: cpu, cuda or mps.
        module: FILE:CLASS, where it is a model of your own.
    """
    try:
        content = text.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{text} cannot be read as UTF-8 text ({error}); give a text file") from error
    model = load(results, trial, device, module)
    print(f"{model.trial_id}: {model.score(content)}")


def export(results: Results, to: str = "gpt2", out: str = "", trial: str = "best") -> None:
    """Write a trained model as a folder that the `transformers` library loads.

    Args:
        results: a results folder, or one weights file.
        to: the form; gpt2 is the only one.
        out: the folder; default exports/TRIAL.
        trial: the beginning of a trial's id; best is the one with the lowest validation loss.
    """
    model = load(results, trial)
    print(f"wrote {model.export(out or Path('exports') / model.trial_id, to)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a person's mistake gives one sentence and exit code 1 (2 where the flags are wrong)."""
    commands: dict[str, Callable[..., Any]] = {"generate": generate, "score": score, "export": export}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m models", description="Trained models of a study.", args=argv)
    except (ValueError, OSError) as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
