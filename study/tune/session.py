"""From missing trials to rows: bundles, Ray's session, the monitor.

Reads the corpus and the survey of the results folder; everything that is written goes through the recorder.

    problem = train(Job(command, trials, corpus, origin, interrupts, quoted), found)   # "" or why it stopped early
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from study.command import Command
from study.data.corpus import Corpus
from study.display.tensorboard import Board
from study.display.terminal import open_view
from study.display.tracker import Tracker
from study.plan.budget import guard_seconds
from study.plan.packing import speed_key
from study.plan.quote import Quote, learn_memory
from study.results.folder import Survey
from study.results.provenance import Provenance
from study.results.store_sync import Mirror
from study.results.trial_writer import Recorder
from study.search.architecture import ShapeSearch
from study.search.learning_rate import SizeSearch
from study.search.search_state import Searches
from study.spec import Trial
from study.train import mps
from study.train.branches import families, programs
from study.tune import cluster, tuner, worker_input
from study.tune.environment import temporary_folder
from study.tune.monitor import Monitor, OutOfBudget, StoreLost
from study.tune.searcher import Prober
from study.tune.signals import Interrupted, Interrupts
from study.tune.worker_input import Bundled


@dataclass(frozen=True)
class Job:
    """What every phase of a run is about."""

    command: Command
    trials: Sequence[Trial]
    corpus: Corpus
    origin: Provenance
    interrupts: Interrupts
    quoted: Quote | None
    store: Mirror | None = None
    """keeps an object store equal to the results folder, where --out names one"""
    searches: Searches | None = None
    """the study's searches, whose trials follow from what is recorded"""
    began: float = field(default_factory=time.monotonic)
    """when the command began, by the monotonic clock"""


def train(job: Job, found: Survey, sizes: Sequence[SizeSearch | ShapeSearch] = ()) -> str:
    """Train the missing trials, or search sizes; returns why it stopped early, or ""."""
    options, out, corpus = job.command.options, job.command.out, job.corpus
    on_cluster = options.on_cluster
    with cluster.ray_session(options), ExitStack() as ends:
        job.interrupts.install()
        prober = make_prober(job, sizes) if sizes else None
        bundles = make_bundles(job.command, found.missing, corpus.vocab_size, job.quoted) if not prober else []
        shares = [prober.resources(size.base) for size in sizes] if prober else [(b.cpus, b.gpus) for b in bundles]
        warning = cluster.check_resources(shares, on_cluster)
        cluster.check_nodes(on_cluster)
        shared = not on_cluster and any(0 < gpus < 1 for _, gpus in shares)
        pipe, without = ends.enter_context(mps.started(options.mps, shared, temporary_folder()))
        work = worker_input.Work(
            bundles=tuple(bundles),
            train=worker_input.share(corpus.train, on_cluster),
            val=worker_input.share(corpus.val, on_cluster),
            vocab_size=corpus.vocab_size,
            tokenizer=corpus.tokenizer,
            device=options.device,
            precision=options.precision,
            checkpoints=out / "checkpoints",
            checkpoint_s=options.checkpoint_s,
            mps=pipe,
            **_store_facts(job.store),
        )
        monitor = _monitor(job, found, bundles)
        for note in filter(None, (warning, without)):
            monitor.note(note)
        if prober:
            prober.monitor = monitor
        return _until_the_end(job, monitor, lambda: tuner.run_bundles(work, options, out, monitor, prober))


def _until_the_end(job: Job, monitor: Monitor, run: Callable[[], None]) -> str:
    """Run what Ray Tune runs; interruptions are recorded and said, as is a budget's end."""
    job.interrupts.deferred = True
    try:
        run()
        job.interrupts.check()
    except Interrupted:
        monitor.interrupted(job.interrupts.name)
        return "stopped"
    except OutOfBudget:
        monitor.interrupted(f"the budget of {job.command.options.budget} was used up")
        return f"the budget of {job.command.options.budget} is used up"
    except StoreLost as lost:
        monitor.interrupted("results could not be kept")
        return str(lost)
    finally:
        job.interrupts.deferred = False
        monitor.close()
        if job.quoted:
            learn_memory(job.quoted, monitor.recorder.trials, monitor.recorder.rows.values())
    return ""


def _store_facts(store: Mirror | None) -> dict[str, Any]:
    """What workers are told of an object store: a folder of the same name on another machine is not the driver's, so a marker tells."""
    if store is None:
        return {}
    marker = f".run-{store.token[:8]}"
    (store.folder / marker).touch()
    return {"store": store.store, "marker": marker}


def make_bundles(command: Command, missing: Sequence[Trial], vocab_size: int, quoted: Quote | None) -> list[Bundled]:
    """What Ray schedules, longest first, so that the last workers end together."""
    if quoted:
        wanted = {trial.trial_id for trial in missing}
        planned = [(tuple(t for t in bundle.trials if t.trial_id in wanted), bundle) for bundle in quoted.plan.bundles]
        return [worker_input.Bundled(part, bundle.cpus, bundle.gpus) for trials, bundle in planned for part in programs(trials)]
    gpus = cluster.gpus_per_trial(command.options)
    longest_first = sorted(missing, key=lambda trial: -trial.flops(vocab_size))
    return [worker_input.Bundled(family, command.options.cpus_per_trial, gpus) for family in families(longest_first)]


def _monitor(job: Job, found: Survey, bundles: Sequence[Bundled]) -> Monitor:

    command, corpus, origin = job.command, job.corpus, job.origin
    options, missing = command.options, found.missing
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
    return Monitor(recorder, [*views, screen, board], job.interrupts, bundles, options.stall_minutes * 60, budget_s, job.store)


def make_prober(job: Job, wanted: Sequence[SizeSearch | ShapeSearch]) -> Prober:
    """The search of these sizes and shapes, each run with the share of the machine that the plan gave to its size."""
    assert job.searches is not None
    options, vocab_size = job.command.options, job.corpus.vocab_size
    planned = job.quoted.plan.bundles if job.quoted else ()
    shares = {speed_key(bundle.trials[0]): (bundle.cpus, bundle.gpus) for bundle in planned}
    usual = (options.cpus_per_trial, cluster.gpus_per_trial(options))
    largest = max(planned, key=lambda bundle: bundle.memory_bytes, default=None)
    shapes = any(isinstance(search, ShapeSearch) for search in wanted)
    room = (largest.cpus, largest.gpus) if shapes and largest else usual
    return Prober(job.searches, wanted, lambda trial: shares.get(speed_key(trial), room), lambda trial: trial.flops(vocab_size))
