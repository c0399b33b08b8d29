"""A study's searches as phases of a run: after the trials known beforehand, the search of each size, then all seeds at what it found.

problem = search_phase(job, wanted=lambda trial: True)   # "" or why it stopped early
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from study import folder
from study.architecture import ShapeSearch, unfold
from study.search import SizeSearch, refresh
from study.spec import Trial

if TYPE_CHECKING:
    from study.folder import Survey
    from study.searcher import Prober
    from study.training import Job


def search_phase(job: "Job", wanted: Callable[[Trial], bool]) -> str:
    """Search the wanted sizes, then train the trials that follow from it; why it stopped early, or ""."""
    from study.training import train

    searches = job.searches
    if not searches:
        return ""
    refresh(searches, job.command.out, job.corpus.sha256)
    going_on: list[SizeSearch | ShapeSearch] = [s for s in searches.sizes if wanted(s.base) and searches.found(s) is None]
    going_on += [s for s in searches.shapes if wanted(s.base) and unfold(s, searches.rows)[1]]
    nothing = dataclasses.replace(take_stock(job), missing=())
    problem = train(job, nothing, going_on) if going_on else ""
    refresh(searches, job.command.out, job.corpus.sha256)
    found = take_stock(job)
    part = tuple(trial for trial in found.missing if wanted(trial) and trial.lr_status != "fixed")
    if problem or not part:
        return problem
    return train(_with_quote(job, part), dataclasses.replace(found, missing=part))


def take_stock(job: "Job") -> "Survey":
    """What is done and what is missing of the trials known by now; rows and study.json are brought up to date with them."""
    assert job.searches is not None
    out, trials = job.command.out, job.searches.trials()
    folder.describe_anew(out, trials, job.command.study_name)
    facts = folder.read_json(out / "study.json")
    folder.write_json(out / "study.json", facts | {"trial_ids": [trial.trial_id for trial in trials]})
    return folder.survey(out, trials, job.corpus.sha256, set_aside=False)


def _with_quote(job: "Job", part: Sequence[Trial]) -> "Job":
    """The job with a plan for trials that were not known when the run was quoted."""
    from study.quote import requote

    return dataclasses.replace(job, quoted=requote(job.quoted, part, job.command.options) if job.quoted else None)


def make_prober(job: "Job", wanted: "Sequence[SizeSearch | ShapeSearch]") -> "Prober":
    """The search of these sizes and shapes, each run with the share of the machine that the plan gave to its size."""
    from study import cluster
    from study.overview import flops
    from study.packing import speed_key
    from study.searcher import Prober

    assert job.searches is not None
    options, vocab_size = job.command.options, job.corpus.vocab_size
    planned = job.quoted.plan.bundles if job.quoted else ()
    shares = {speed_key(bundle.trials[0]): (bundle.cpus, bundle.gpus) for bundle in planned}
    usual = (options.cpus_per_trial, cluster.gpus_per_trial(options))
    sizes = [search for search in wanted if isinstance(search, SizeSearch)]
    shapes = [search for search in wanted if isinstance(search, ShapeSearch)]
    largest = max(planned, key=lambda bundle: bundle.memory_bytes, default=None)
    room = (largest.cpus, largest.gpus) if shapes and largest else usual
    return Prober(job.searches, sizes, lambda trial: shares.get(speed_key(trial), room), lambda trial: flops(trial, vocab_size), shapes)
