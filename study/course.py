"""The course of a run: survey what is there, quote what is missing, train it, conclude with the report.

Everything but Ray is imported here; Ray reads its settings from the environment as it is imported, so it follows when they are set.

    command = checked(parse(argv)); code = run(command, argv, interrupts)
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from study import records, report_process
from study.command import Command
from study.console import complain, how_to_continue, shown
from study.data import batches
from study.data import corpus as data
from study.data.corpus import Corpus
from study.display import overview, tensorboard, tracker
from study.display.terminal import distinctions, printable, trial_name
from study.files import read_json, write_json
from study.options import Options
from study.plan import scope
from study.plan.machine import processors
from study.plan.memory import check_memory
from study.plan.probe import ProbeError
from study.plan.quote import Quote, duration, learn, make_quote
from study.plan.scope import Scope
from study.results import folder, store_sync
from study.results.folder import Survey
from study.results.object_store import is_address
from study.results.provenance import Provenance, provenance
from study.search import search_state
from study.search.search_state import Searches
from study.spec import RECIPE_VERSION, Trial, expand
from study.tune.environment import check_address_space, set_ray_environment
from study.tune.signals import Interrupts


def checked(command: Command) -> Command:
    """The command, with --from-suggestion that for the study that was suggested to; ValueError where something in it is impossible.

    Shapes, fields, hold-outs and models beyond any memory are looked at before anything is downloaded.
    """
    command = scope.adopt(command)
    command.options.check_address()
    tracker.check(command.options.track)
    searches = search_state.plan(command.study)
    trials = [*searches.plain, *searches.expected()]
    report_process.held_out(trials, *command.options.hold_out)
    check_memory(trials, command.options)
    return command


def run(command: Command, argv: list[str], interrupts: Interrupts) -> int:
    """Train what a checked command lacks and conclude; returns the exit code."""
    began = time.monotonic()
    study, options, out = command.study, command.options, command.out
    corpus = data.find(study.data) if options.dry_run and study.data.from_hub else data.prepare(study.data)
    plain = expand(study, data.data_key(study.data))
    if corpus:
        for block_size, unique_tokens in {(trial.shape.block_size, trial.train.unique_tokens) for trial in plain}:
            batches.check_lengths(corpus.train, corpus.val, block_size, unique_tokens)
    if options.dry_run:
        if is_address(options.out):
            store_sync.fetch(options.out, out)
        print(_prepare(command, plain, corpus).text)
        return 0
    assert corpus is not None
    set_ray_environment(options.on_cluster)
    with store_sync.held(options.out, out) as store, ExitStack() as while_training:
        start_ray = partial(_start_ray, options, interrupts, while_training)
        if options.on_cluster:
            start_ray()
        about, searches, found, quoted, text = _prepare(command, plain, corpus, start_ray)
        print(text, flush=True)
        trials, origin = about.trials, provenance(processors())
        facts = {"quote": quoted.facts() if quoted else None, "suggested": about.suggested}
        write_json(out / "study.json", _study_facts(command, trials, corpus, origin, argv) | facts)
        folder.describe_anew(out, trials, command.study_name)
        if not options.on_cluster and (found.missing or searches.to_come()):
            start_ray()
        problem = ""
        if found.missing or searches:
            from study.tune.session import Job, train_in_phases

            problem = train_in_phases(Job(command, trials, corpus, origin, interrupts, quoted, store, searches, began), found)
        if problem or (quoted and quoted.machine.kind != "cpu"):  # its head may be going, too
            while_training.close()
        asked = len(found.done) + len(found.missing)
        if searches:
            trials, asked = searches.trials(), len(searches.trials()) + len(searches.to_come())
        code = _conclude(command, trials, corpus.sha256, interrupts, argv, problem, asked, while_training)
        if quoted and found.missing and code == 0:
            seconds = time.monotonic() - began
            learn(quoted, {trial.trial_id: trial for trial in trials}, records.read(out, "trials").to_pylist())
            score = quoted.score(seconds)
            print(f"quoted {duration(score['quoted_seconds'])}, took {duration(seconds)} ({score['error']:+.0%})")
            write_json(out / "study.json", read_json(out / "study.json") | {"quote_score": score})
        return code


def _start_ray(options: Options, interrupts: Interrupts, until: ExitStack) -> None:
    """Join the cluster, or start Ray on this machine: it mostly waits for its own processes, and so does a driver who times steps."""
    check_address_space()
    from study.tune import cluster  # Ray reads its environment as it is imported

    if joined := until.enter_context(cluster.ray_session(options)):
        print(joined, flush=True)
    interrupts.install()


class _Ready(NamedTuple):
    """What a run is about to do, and what is said of it."""

    about: Scope
    searches: Searches
    found: Survey
    quoted: Quote | None
    text: str


def _prepare(command: Command, plain: list[Trial], corpus: Corpus | None, meanwhile: Callable[[], None] | None = None) -> _Ready:
    """Survey the results, choose within the budget and quote; a dry run sets nothing aside.

    Args:
        plain: the study's trials but for those of searches.
        meanwhile: called once where steps are to be timed, while that goes on.
    """
    study, options, sha256 = command.study, command.options, corpus.sha256 if corpus else ""
    vocab_size, key = corpus.vocab_size if corpus else data.expected_vocab_size(study.data), data.data_key(study.data)
    about = scope.find(command, plain, key)
    searches = search_state.read(study, key, command.out, sha256, about.trials)
    about = dataclasses.replace(about, trials=searches.trials())
    found = folder.survey(command.out, about.trials, sha256, set_aside=not options.dry_run)
    if about.wanted is not None:  # only what was suggested is trained; what searches have found stays part of the study
        searches = Searches(study, about.trials, [])
        found = dataclasses.replace(found, missing=tuple(trial for trial in found.missing if trial.trial_id in about.wanted))
    if options.timing == "exclusive":
        found = scope.with_timing(found, about.trials)
    quoted, missing = None, [*found.missing, *searches.to_come()]
    if missing and not options.on_cluster:  # whose devices are not here
        try:
            quoted = make_quote(missing, vocab_size, options, meanwhile)
        except ProbeError as error:
            print(f"no quote: a few steps of these trials could not be timed on this machine ({error})", file=sys.stderr, flush=True)
    found, quoted, lines = scope.within_budget(command, about, found, quoted)
    lines = [*overview.cautions(about.trials, corpus, command.out), *searches.lines(), *lines]
    if quoted and options.timing == "exclusive":
        quoted, said = scope.quote_timing(quoted, found, about.trials)
        lines.append(said)
    text = overview.overview(command.study_name, study, about.trials, found, corpus, vocab_size, quoted)
    return _Ready(about, searches, found, quoted, "\n".join([text, *lines]))


def _study_facts(command: Command, trials: Sequence[Trial], corpus: Corpus, origin: Provenance, argv: list[str]) -> dict[str, Any]:
    """What study.json holds: the question, every default spelled out, the data, and where all of it came from."""
    block = command.study.model.block_size
    names = ("name", "sha256", "vocab_size", "floor", "floor_se", "n_unknown", "source")
    corpus_facts = {name: getattr(corpus, name) for name in names} | {"n_train": len(corpus.train), "n_val": len(corpus.val)}
    return {
        "schema_version": "1.0",
        "name": command.study_name,
        "question": command.study.question,
        "command": shlex.join(["python", "-m", "study.run", *argv]),
        "study": dataclasses.asdict(command.study),
        "options": command.options.facts(),
        "data": corpus_facts,
        "data_sha256": corpus.sha256,
        "eval_sha256": batches.eval_sha256(*batches.evaluation_windows(corpus.val, command.study.train.eval_windows, block)),
        "recipe_version": RECIPE_VERSION,
        "trial_ids": [trial.trial_id for trial in trials],
        **dataclasses.asdict(origin),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# ---- the end ----


def _conclude(
    command: Command,
    trials: Sequence[Trial],
    data_sha256: str,
    interrupts: Interrupts,
    argv: Sequence[str],
    problem: str,
    asked: int,
    while_training: ExitStack,
) -> int:
    """Compact the tables, say what is there, build the report; returns the exit code: 0 where all that was asked for is completed.

    Args:
        problem: why training stopped early, or "".
        asked: trials that were asked for.
        while_training: stops Ray, if that is still up, when it is closed.
    """
    out = command.out
    for table in records.PER_TRIAL:
        records.compact(out, table, command.study_name)
    done = folder.survey(out, trials, data_sha256).done
    n_completed = sum(row["status"] == "COMPLETED" for row in done.values())
    n_given_up = sum(trial.may_stop and done.get(trial.trial_id, {}).get("status") in ("STOPPED", "DIVERGED") for trial in trials)
    with report_process.ending(out) if command.options.report and n_completed and not interrupts.signum else nullcontext() as wait:
        while_training.close()
        given_up = f" and {n_given_up} given up by a search" if n_given_up else ""
        print(f"\n{n_completed} of {len(trials)} trials are completed{given_up}; results are in {shown(out)}", flush=True)
        if problem:
            complain(how_to_continue(problem, argv), 0)
        if interrupts.signum:
            return interrupts.exit_code
        _name_the_rest(out, trials)
        reported = wait is None or _report(out, wait(), command.options.track)
    return 0 if n_completed + n_given_up >= asked and reported else 1


def _name_the_rest(out: Path, trials: Sequence[Trial]) -> None:
    """Say which trials are not completed, and why."""
    rows = {row["trial_id"]: row for row in records.read(out, "trials").to_pylist()}
    ends = {
        trial.trial_id: f"{row['status']} ({row['reason']})" if (row := rows.get(trial.trial_id)) else "not run yet" for trial in trials
    }
    others = [trial for trial in trials if not ends[trial.trial_id].startswith(("COMPLETED", "STOPPED"))]
    told = distinctions(trials)
    for trial in others[:20]:
        print(printable(f"  {trial_name(trial, told)}: {ends[trial.trial_id]}"))
    if len(others) > 20:
        print(f"  ... and {len(others) - 20} more")


def _report(out: Path, problem: str, track: str) -> bool:
    """Show the report on the board, and to a tracker, and print where it is and what it answers."""
    if problem:
        complain(f"the report could not be built: {problem}; try again with: python -m analysis {shown(out)}", 1)
        return False
    figures = {path.stem: path for path in sorted((out / "report" / "figures").glob("*.png"))}
    tensorboard.publish(out, {name: path.read_bytes() for name, path in figures.items()})
    if track and (said := tracker.publish(track, out, figures)):
        complain(said, 0)
    for sentence in read_json(out / "report" / "fits.json").get("answer", []):
        print(f"  {sentence}")
    print(f"report: {shown(out / 'report' / 'report.html')}")
    return True
