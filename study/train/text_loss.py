"""Every final text of a study read by its best model: `python -m study.train.text_loss RESULTS` writes the table `judgements`.

The judge is the completed trial of lowest validation loss whose weights were kept. Its loss on a text, in nats per character, says how
surprising the text is to it: a measure of fluency in the corpus' language, which cold and dull texts pass too.

    judge_results(Path("results/quick"))   # {'judge_trial_id': ..., 'n_texts': 768}
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import weights
from models.transformer import Transformer
from study import records
from study.data import corpus as data
from study.spec import DataConfig
from study.train.device import choose_device, choose_precision

END = "<|endoftext|>"
MOST_PER_TRIAL = 32
"""Texts of a trial that are read, evenly spread over its texts."""
BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Text:
    """Token ids of prompt and text; the first `n_prompt` are given, the others judged."""

    ids: np.ndarray
    n_prompt: int


def judge_results(results: Path) -> dict[str, Any]:
    """Judge all final texts of completed trials and write `judgements.parquet`.

    Raises:
        ValueError: no completed trial has weights, no text was generated, or the data are not in the cache; one sentence says which.
    """
    facts = json.loads((results / "study.json").read_text(encoding="utf-8"))
    corpus = data.find(DataConfig(**facts["study"]["data"]))
    if corpus is None or corpus.sha256 != facts["data_sha256"]:
        raise ValueError("the text that the models were trained on is not in this machine's data cache")
    done = sorted(records.completed(results).values(), key=lambda row: (row["val_loss"], row["trial_id"]))
    judges = [row["trial_id"] for row in done if (results / "weights" / f"{row['trial_id']}.safetensors").exists()]
    if not judges:
        raise ValueError(f"no completed trial of {results} has kept its weights; trials trained from now on keep them")
    rows = _final_rows(records.read(results, "samples").to_pylist(), {row["trial_id"] for row in done})
    if not rows:
        raise ValueError(f"{results} holds no generated texts")
    device = choose_device("auto")
    model, _ = weights.read(results / "weights" / f"{judges[0]}.safetensors", str(device))
    model.precision = choose_precision("auto", device, model.config.n_embd)
    losses = text_losses(model, [encode(row["prompt"], row["text"], corpus.characters) for row in rows])
    keys = ("trial_id", "step", "prompt", "index", "temperature")
    judged = [
        {**{key: row[key] for key in keys}, "judge_trial_id": judges[0], "judge_loss": loss}
        for row, loss in zip(rows, losses, strict=True)
        if math.isfinite(loss)
    ]
    records.write(results / "judgements.parquet", "judgements", judged, facts.get("name", ""))
    return {"judge_trial_id": judges[0], "n_texts": len(judged)}


def _final_rows(samples: Sequence[dict[str, Any]], trial_ids: set[str]) -> list[dict[str, Any]]:
    """Texts of each trial's last step, at most `MOST_PER_TRIAL` of each."""
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in samples:
        if row["trial_id"] in trial_ids:
            by_trial.setdefault(row["trial_id"], []).append(row)
    chosen = []
    for rows in by_trial.values():
        last = max(row["step"] or 0 for row in rows)
        final = [row for row in rows if (row["step"] or 0) == last]
        chosen += final[:: math.ceil(len(final) / MOST_PER_TRIAL)]
    return chosen


def encode(prompt: str, text: str, characters: Sequence[str]) -> Text:
    """Token ids of a prompt and its continuation; characters that the corpus does not have become the unknown one."""
    ids = {character: index for index, character in enumerate(characters)}

    def tokens(whole: str) -> list[int]:
        parts = [[ids.get(c, 1) for c in part] for part in whole.split(END)]
        return [i for n, part in enumerate(parts) for i in ([0] if n else []) + part]

    before, after = tokens(prompt), tokens(text)
    return Text(np.array(before + after, dtype=np.int64), len(before))


@torch.inference_mode()
def text_losses(model: Transformer, texts: Sequence[Text]) -> list[float]:
    """Mean loss of each text's own characters in nats, each seen with at least half a context before it where there is one.

    Windows of block_size overlap by half; a window's first half counts only at the beginning of the text.
    """
    T = model.config.block_size
    windows: list[tuple[int, np.ndarray, np.ndarray, int]] = []  # text, inputs, targets, first target that counts
    for number, text in enumerate(texts):
        end = len(text.ids) - 1
        for start in range(0, max(1, end - T // 2), max(1, T // 2)):
            inputs, targets = text.ids[start : min(start + T, end)], text.ids[start + 1 : start + T + 1]
            windows.append((number, inputs, targets, max(text.n_prompt - 1 - start, T // 2 if start else 0)))
    sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
    size = max(1, BATCH_TOKENS // T)
    for first in range(0, len(windows), size):
        part = windows[first : first + size]
        x, y = (np.zeros((len(part), T), dtype=np.int64) for _ in range(2))
        for row, (_, inputs, targets, _) in enumerate(part):
            x[row, : len(inputs)], y[row, : len(targets)] = inputs, targets  # causal: what pads the end is never seen
        pair = (torch.from_numpy(array)[None].to(model.flat.device) for array in (x, y))
        losses = model.token_losses(*pair)[0].double().cpu().numpy()
        for row, (number, _, targets, counted) in enumerate(part):
            own = losses[row, counted : len(targets)]
            sums[number] += own.sum()
            counts[number] += len(own)
    return [float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True)]


def main() -> int:
    """Judge one results folder; exit code 1 and one sentence where that cannot be done."""
    try:
        if len(sys.argv) != 2:
            raise ValueError("give one results folder: python -m study.train.text_loss RESULTS")
        found = judge_results(Path(sys.argv[1]))
    except (ValueError, OSError, KeyError) as error:
        print(f"study.train.text_loss: {error}", file=sys.stderr)
        return 1
    print(f"{found['n_texts']} texts were read by trial {found['judge_trial_id']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
