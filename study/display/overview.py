"""What a person is told before a run: trials by configuration, what is done, stale or missing, and what is allowed and rarely meant.

print(overview(command.study_name, study, trials, survey, corpus, vocab_size, quote), *cautions(trials, corpus, out), sep="\\n")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from study.data.corpus import Corpus
from study.display.terminal import compact
from study.files import read_json
from study.plan.quote import Quote, duration
from study.results.folder import Survey
from study.spec import Study, Trial
from study.train.branches import families, own_costs

MOST_ROWS = 40
MOST_EPOCHS = 40
"""Repeated text is worth ever less: up to 4 epochs as much as new text, from about 40 on nothing (Muennighoff et al. 2023)."""
MOST_LR = 0.1
"""AdamW's peak rates for transformers lie between about 1e-4 and 3e-2 (Hoffmann et al. 2022; Yang et al. 2022; this program's searches)."""


def flops_to_train(trials: Sequence[Trial], vocab_size: int) -> float:
    """Expected training FLOPs of trials together: a trunk that several lengths share counts once."""
    steps = {trial_id: own.steps for family in families(trials) for trial_id, own in own_costs(family).items()}
    return sum(trial.flops(vocab_size) * steps[trial.trial_id] / trial.train.n_steps for trial in trials)


def overview(
    name: str, study: Study, trials: Sequence[Trial], found: Survey, corpus: Corpus | None, vocab_size: int, quoted: Quote | None
) -> str:
    """All that a person should know before the run starts."""
    n_configurations = len({trial.config_id for trial in trials})
    lines = [f"study {name}: {study.question}", describe_data(study, corpus)]
    lines.append(
        f"{len(trials)} trials = {n_configurations} configurations x {len(study.seeds)} seeds; "
        f"{len(found.done)} done, {len(found.missing)} to run" + (f" ({found.failed_before} of them again)" if found.failed_before else "")
    )
    if found.stale:
        lines.append(f"{found.stale} stale rows (older recipe or other data) stay in the folder and are left out")
    if found.foreign:
        lines.append(f"{found.foreign} rows are of trials that the study, as it is now, does not hold; they stay and are left out")
    if study.model.base_width:
        lines.append(_parametrization(study))
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"note: sweep {sweep.name}: {line}" for sweep in study.parsed_sweeps for line in sweep.unreachable()]
    total = flops_to_train(found.missing, vocab_size)
    table = configuration_table(trials, found, vocab_size, quoted.seconds_by_configuration if quoted else {})
    return "\n".join([*lines, "", *table, "", f"to run: {compact(total)} FLOPs of training", *(quoted.lines() if quoted else [])])


def describe_data(study: Study, corpus: Corpus | None) -> str:
    """One line on the text."""
    if corpus is None:
        return f"data: {study.data.name}, not on this machine yet (the run will fetch it)"
    unit = "character" if corpus.tokenizer and corpus.tokenizer.characters else "token"
    text = f"data: {corpus.name}, {len(corpus.train):,} training and {len(corpus.val):,} validation {unit}s, {corpus.vocab_size:,} distinct"
    text += f", {corpus.n_unknown:,} of them unseen in training" if corpus.n_unknown else ""
    return text + (f"; entropy {corpus.floor:.3f} nats per {unit}" if corpus.floor is not None else "")


def _parametrization(study: Study) -> str:
    model = study.model
    name, depth = ("CompleteP", f", base depth {model.base_depth}") if model.base_depth else ("muP", "")
    follows = "matrices follow the width, " + ("branches the depth, " if depth else "") + "attention's scale the head width"
    return (
        f"parametrization: {name}, base width {model.base_width}, head width {model.base_head_dim}{depth}; lr holds at the base, {follows}"
    )


def configuration_table(trials: Sequence[Trial], found: Survey, vocab_size: int, expected: Mapping[str, float]) -> list[str]:
    """Lines of a table with one row per configuration, in the study's order; `expected` seconds of one trial by config_id, where quoted."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.config_id, []).append(trial)
    rows = [("layers", "width", "heads", "params", "non-emb.", "steps", "tokens", "lr", "FLOPs", "each", "to run", "sweeps")]
    missing = {trial.trial_id for trial in found.missing}
    for group in groups.values():
        first, model = group[0], group[0].model(vocab_size)
        n_missing = sum(trial.trial_id in missing for trial in group)
        counts = (compact(model.params_total), compact(model.params_non_embedding), f"{first.train.n_steps:,}", compact(first.n_tokens))
        shape = (str(model.n_layer), str(model.n_embd), str(model.n_head))
        time_each = duration(expected[first.config_id]) if first.config_id in expected else "-"
        cost = (f"{first.train.lr:g}", compact(first.flops(vocab_size)), time_each, f"{n_missing} of {len(group)}")
        rows.append((*shape, *counts, *cost, ", ".join(first.sweeps)))
    shown = rows[: MOST_ROWS + 1]
    widths = [max(len(row[column]) for row in shown) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in shown]
    return lines + ([f"... and {len(rows) - len(shown)} configurations more"] if len(rows) > len(shown) else [])


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
