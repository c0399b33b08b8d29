"""What a person would rather hear before a run than read out of its losses: repeated text, a learning rate beyond use, mixed results.

print(*cautions(trials, corpus, out), sep="\\n")
"""

from collections.abc import Sequence
from pathlib import Path

from study.data.corpus import Corpus
from study.files import read_json
from study.spec import Trial

MOST_EPOCHS = 40
"""Repeated text is worth ever less: up to 4 epochs as much as new text, from about 40 on nothing (Muennighoff et al. 2023)."""
MOST_LR = 0.1
"""AdamW's peak rates for transformers lie between about 1e-4 and 3e-2 (Hoffmann et al. 2022; Yang et al. 2022; this program's searches)."""


def cautions(trials: Sequence[Trial], corpus: Corpus | None, out: Path) -> list[str]:
    """A sentence for each thing that is allowed and rarely meant."""
    told = []
    if corpus and (whole := [trial for trial in trials if not trial.train.unique_tokens]):  # else repetition is what is studied
        longest = max(trial.n_tokens for trial in whole)
        if (epochs := longest / len(corpus.train)) > MOST_EPOCHS:
            told.append(
                f"note: {longest:,} training tokens from a text of {len(corpus.train):,} are {epochs:.0f} epochs; after about "
                f"{MOST_EPOCHS} more of it is worth nothing: give more text or fewer steps"
            )
    if (lr := max((trial.train.lr for trial in trials), default=0.0)) > MOST_LR:
        told.append(f"note: lr={lr:g} is far above what AdamW bears (1e-4 to 3e-2 are usual): trials will diverge or learn nothing")
    facts = read_json(out / "study.json")
    if corpus and facts.get("data_sha256") not in (None, corpus.sha256):
        held = facts["data"].get("source", "unknown") if isinstance(facts.get("data"), dict) else "unknown"
        told.append(
            f"note: {out} holds results of another text ({held}); they stay and are left out; give another --out to keep the two apart"
        )
    return told
