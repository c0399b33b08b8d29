"""From missing trials to rows: phases, bundles, Ray's session, Ray Tune's Tuner, the monitor.

The phases are timed trials, known trials, searches, then all seeds at what they found; held-out sizes last. Reads the corpus and the survey
of the results folder; everything that is written goes through the recorder, and what Ray Tune keeps of its own is disposable.

    problem = train_in_phases(Job(command, trials, corpus, …), found)   # "" or why it stopped early
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from ray import tune

from study import report_process
from study.command import Command
from study.data.corpus import Corpus
from study.display.tensorboard import Board
from study.display.terminal import open_view
from study.display.tracker import Tracker
from study.files import FULL, read_json, write_json
from study.plan.budget import guard_seconds
from study.plan.packing import speed_key
from study.plan.quote import Quote, learn_memory, requote
from study.plan.scope import to_time
from study.results import folder
from study.results.folder import Survey
from study.results.provenance import Provenance
from study.results.store_sync import Mirror
from study.results.trial_writer import Recorder
from study.search.architecture import ShapeSearch
from study.search.learning_rate import SizeSearch
from study.search.search_state import Searches, refresh
from study.spec import Trial
from study.train import mps
from study.train.branches import families, programs
from study.tune import cluster, worker_input
from study.tune.environment import temporary_folder
from study.tune.local_ray import no_room
from study.tune.monitor import CannotGoOn, Monitor
from study.tune.searcher import Prober, WithinSize
from study.tune.signals import Interrupted, Interrupts
from study.tune.trainable import BundleTrainable
from study.tune.worker_input import Bundled, Work

MAX_FAILURES = 2
"""A failed trial is tried again so often, each time from its newest checkpoint."""


@dataclass(frozen=True)
class Job:
    """What every phase of a run is about."""

    command: Command
    trials: Sequence[Trial]
    corpus: Corpus
    origin: Provenance
    interrupts: Interrupts
    quoted: Quote | None
    store: Mirror | None
    """keeps an object store equal to the results folder, where --out names one"""
    searches: Searches
    """the study's, whose trials follow from what is recorded; often none"""
    began: float
    """when the command began, by the monotonic clock"""


def train_in_phases(job: Job, found: Survey) -> str:
    """Train what is missing, then search; with --hold-out the rest first, then forecasts, then what is held out; why it stopped, or ""."""
    expected = [*job.trials, *job.searches.expected()]
    end, count = job.command.options.hold_out
    held_out = report_process.held_out(expected, end, count)
    last = {report_process.extent(trial, end) for trial in held_out}
    for later in (False, True):

        def wanted(trial: Trial, later: bool = later) -> bool:
            return (report_process.extent(trial, end) in last) == later

        if later and any(wanted(trial) for trial in expected):
            report_process.forecast(job.command.out, held_out)
        alone, rest = _alone(job, found), [trial for trial in found.missing if wanted(trial)]
        if first := [trial for trial in rest if trial.trial_id in alone]:
            rest = [trial for trial in rest if trial.trial_id not in alone]
            gpus = job.command.options.gpus_per_trial
            whole = None if gpus is not None and 0 < gpus < 1 else gpus
            options = replace(job.command.options, max_concurrent=1, bundle=1, gpus_per_trial=whole)
            if problem := train(replace(job, command=replace(job.command, options=options), quoted=None), found, first):
                return problem
        if rest and (problem := train(job, found, rest)):
            return problem
        if job.searches and (problem := search_phase(job, wanted)):
            return problem
    return ""


def _alone(job: Job, found: Survey) -> set[str]:
    """Trials that train one at a time, with the device to themselves."""
    return {trial.trial_id for trial in to_time(job.trials, found.done)} if job.command.options.timing == "exclusive" else set()


def search_phase(job: Job, wanted: Callable[[Trial], bool]) -> str:
    """Search the wanted sizes, then train the trials that follow from it; why it stopped early, or ""."""
    refresh(job.searches, job.command.out, job.corpus.sha256)
    going_on = [search for search in job.searches.all if wanted(search.base) and search.pending()]
    found = take_stock(job)
    problem = train(job, found, [], going_on) if going_on else ""
    refresh(job.searches, job.command.out, job.corpus.sha256)
    found = take_stock(job)
    part = [trial for trial in found.missing if wanted(trial) and trial.lr_status in ("tuned", "at_edge")]
    if problem or not part:
        return problem
    quoted = job.quoted and requote(job.quoted, part)  # they were not known when the run was quoted
    return train(replace(job, quoted=quoted), found, part)


def take_stock(job: Job) -> Survey:
    """What is done and what is missing of the trials known by now; rows and study.json are brought up to date with them."""
    out, trials = job.command.out, job.searches.trials()
    folder.describe_anew(out, trials, job.command.study_name)
    facts = read_json(out / "study.json")
    write_json(out / "study.json", facts | {"trial_ids": [trial.trial_id for trial in trials]})
    return folder.survey(out, trials, job.corpus.sha256, set_aside=False)


# ---- one phase ----


def train(job: Job, found: Survey, missing: Sequence[Trial], sizes: Sequence[SizeSearch | ShapeSearch] = ()) -> str:
    """Train missing trials, or search sizes; returns why it stopped early, or ""."""
    options, corpus, on_cluster = job.command.options, job.corpus, job.command.options.on_cluster
    with cluster.ray_session(options), ExitStack() as ends:
        job.interrupts.install()
        bundles = make_bundles(job.command, missing, corpus.vocab_size, job.quoted)
        share_of = _shares(job, sizes)
        shares = [*((b.cpus, b.gpus) for b in bundles), *(share_of(size.base) for size in sizes)]
        warning = cluster.check_resources(shares, on_cluster)
        cluster.check_nodes(on_cluster)
        shared = not on_cluster and any(0 < gpus < 1 for _, gpus in shares)
        pipe, without = ends.enter_context(mps.started(options.mps, shared, temporary_folder()))
        train, val = (worker_input.share(split, on_cluster) for split in (corpus.train, corpus.val))
        facts = corpus.vocab_size, corpus.tokenizer, options, job.command.out / "checkpoints", pipe
        work = Work(tuple(bundles), train, val, *facts)
        if job.store:  # a folder of the same name on another machine is not the driver's, so a marker of this run tells
            work = replace(work, store=job.store.store, marker=f".run-{job.store.token[:8]}")
            (job.store.folder / work.marker).touch()
        monitor = _monitor(job, found, missing, bundles)
        for note in filter(None, (warning, without)):
            monitor.note(note)
        prober = Prober(job.searches, sizes, share_of, corpus.vocab_size, monitor) if sizes else None
        job.interrupts.deferred = True
        try:
            run_bundles(work, monitor, prober)
            job.interrupts.check()
        except Interrupted:
            monitor.interrupted(job.interrupts.name)
            return "stopped"
        except CannotGoOn as end:
            monitor.interrupted(end.reason)
            return str(end)
        finally:
            job.interrupts.deferred = False
            monitor.close()
            if job.quoted:
                learn_memory(job.quoted, monitor.recorder.trials, monitor.recorder.rows.values())
    return ""


def make_bundles(command: Command, missing: Sequence[Trial], vocab_size: int, quoted: Quote | None) -> list[Bundled]:
    """What Ray schedules, longest first, so that the last workers end together."""
    if quoted:
        wanted = {trial.trial_id for trial in missing}
        planned = [(tuple(t for t in bundle.trials if t.trial_id in wanted), bundle) for bundle in quoted.plan.bundles]
        return [Bundled(part, bundle.cpus, bundle.gpus) for trials, bundle in planned for part in programs(trials)]
    gpus = cluster.gpus_per_trial(command.options)
    longest_first = sorted(missing, key=lambda trial: -trial.flops(vocab_size))
    return [Bundled(family, command.options.cpus_per_trial, gpus) for family in families(longest_first)]


def _monitor(job: Job, found: Survey, missing: Sequence[Trial], bundles: Sequence[Bundled]) -> Monitor:
    command, corpus, origin, options = job.command, job.corpus, job.origin, job.command.options
    columns = {
        "data_name": corpus.name,
        "data_sha256": corpus.sha256,
        "tokenizer": command.study.data.tokenizer,
        "loss_floor": corpus.floor,
        "unique_tokens": len(corpus.train),
        "git_commit": origin.git_commit,
        "git_dirty": origin.git_dirty,
        "torch_version": origin.versions["torch"],
        "ray_version": origin.versions["ray"],
    }
    by_id = {trial.trial_id: trial for trial in missing}
    recorder = Recorder(command.out, command.study_name, origin.code_version, columns, by_id, corpus.vocab_size, again=found.again)
    screen = open_view(by_id, corpus.vocab_size, len(found.done))
    board = Board(command.out / "tensorboard", by_id, corpus.vocab_size)
    screen.say(f"board: {board.how_to_open()}")
    views = [Tracker(options.track, command.out, by_id, corpus.vocab_size, screen.say)] if options.track else []
    budget_s = guard_seconds(options.budget, job.quoted.plan if job.quoted else None, time.monotonic() - job.began)
    return Monitor(recorder, [*views, screen, board], job.interrupts, bundles, options, budget_s, job.store)


def _shares(job: Job, wanted: Sequence[SizeSearch | ShapeSearch]) -> Callable[[Trial], tuple[float, float]]:
    """(CPUs, GPUs) of a run of these searches: the share of the machine that the plan gave to its size, else to the largest."""
    options, planned = job.command.options, job.quoted.plan.bundles if job.quoted else ()
    shares = {speed_key(bundle.trials[0]): (bundle.cpus, bundle.gpus) for bundle in planned}
    if planned and any(isinstance(search, ShapeSearch) for search in wanted):
        largest = max(planned, key=lambda bundle: bundle.memory_bytes)
        room = largest.cpus, largest.gpus
    else:
        room = options.cpus_per_trial, cluster.gpus_per_trial(options)
    return lambda trial: shares.get(speed_key(trial), room)


def run_bundles(work: Work, callback: tune.Callback, prober: Prober | None) -> None:
    """Train all bundles, in their order, as many at once as fit; returns when none is left. The callback has seen every result.

    Args:
        prober: makes bundles as the run goes on, in the place of those known beforehand.

    Raises:
        Interrupted: the callback acted upon a signal.
        ValueError: there is no room for what Ray Tune writes of its own.
    """
    out = work.checkpoints.parent
    shutil.rmtree(out / "ray", ignore_errors=True)
    search: dict[str, Any] = {"search_alg": prober, "scheduler": WithinSize(prober), "num_samples": -1} if prober else {}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(BundleTrainable, work=work), worker_input.requests(work.bundles)),
        param_space={} if prober else {"bundle": tune.grid_search(list(range(len(work.bundles))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=work.options.max_concurrent or None,
            reuse_actors=True,
            trial_name_creator=attrgetter("trial_id"),
            trial_dirname_creator=attrgetter("trial_id"),
            **search,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(out / "ray"),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[callback],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except tune.TuneError as error:
        if any(os.strerror(full) in str(error) for full in FULL):
            raise ValueError(f"{no_room(out)}; what is done is kept, and the same command continues") from None
        raise
