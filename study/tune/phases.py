"""The phases of a run: timed trials, known trials, searches, then all seeds at what they found; held-out sizes last.

problem = train_in_phases(job, found)   # "" or why it stopped early
"""

import dataclasses
from collections.abc import Callable

from study import report_process
from study.files import read_json, write_json
from study.plan.quote import requote
from study.plan.scope import to_time
from study.results import folder
from study.results.folder import Survey
from study.search.search_state import refresh
from study.spec import Trial
from study.tune.session import Job, train


def train_in_phases(job: Job, found: Survey) -> str:
    """Train what is missing, then search; with --hold-out the rest first, then forecasts, then what is held out; why it stopped, or ""."""
    expected = [*job.trials, *(job.searches.expected() if job.searches else [])]
    end, count = job.command.options.hold_out
    held_out = report_process.held_out(expected, end, count)
    last = {report_process.extent(trial, end) for trial in held_out}
    for later in (False, True):

        def wanted(trial: Trial, later: bool = later) -> bool:
            return (report_process.extent(trial, end) in last) == later

        part = tuple(trial for trial in found.missing if wanted(trial))
        if later and any(wanted(trial) for trial in expected):
            report_process.forecast(job.command.out, held_out)
        problem, rest = "", dataclasses.replace(found, missing=part)
        if job.command.options.timing == "exclusive":
            problem, rest = train_alone(job, rest)
        problem = problem or (train(job, rest) if rest.missing else "")
        problem = problem or search_phase(job, wanted)
        if problem:
            return problem
    return ""


def train_alone(job: Job, found: Survey) -> tuple[str, Survey]:
    """Train what is to be timed, one at a time; returns why it stopped early, or "", and what is left."""
    wanted = {trial.trial_id for trial in to_time(job.trials, found.done)}
    alone = tuple(trial for trial in found.missing if trial.trial_id in wanted)
    rest = dataclasses.replace(found, missing=tuple(trial for trial in found.missing if trial.trial_id not in wanted))
    if not alone:
        return "", rest
    gpus = job.command.options.gpus_per_trial
    whole = None if gpus is not None and 0 < gpus < 1 else gpus
    options = dataclasses.replace(job.command.options, max_concurrent=1, bundle=1, gpus_per_trial=whole)
    command = dataclasses.replace(job.command, options=options)
    return train(dataclasses.replace(job, command=command, quoted=None), dataclasses.replace(found, missing=alone)), rest


def search_phase(job: Job, wanted: Callable[[Trial], bool]) -> str:
    """Search the wanted sizes, then train the trials that follow from it; why it stopped early, or ""."""
    searches = job.searches
    if not searches:
        return ""
    refresh(searches, job.command.out, job.corpus.sha256)
    going_on = [search for search in searches.all if wanted(search.base) and search.pending()]
    nothing = dataclasses.replace(take_stock(job), missing=())
    problem = train(job, nothing, going_on) if going_on else ""
    refresh(searches, job.command.out, job.corpus.sha256)
    found = take_stock(job)
    part = tuple(trial for trial in found.missing if wanted(trial) and trial.lr_status in ("tuned", "at_edge"))
    if problem or not part:
        return problem
    quoted = job.quoted and requote(job.quoted, part)  # they were not known when the run was quoted
    return train(dataclasses.replace(job, quoted=quoted), dataclasses.replace(found, missing=part))


def take_stock(job: Job) -> Survey:
    """What is done and what is missing of the trials known by now; rows and study.json are brought up to date with them."""
    assert job.searches is not None
    out, trials = job.command.out, job.searches.trials()
    folder.describe_anew(out, trials, job.command.study_name)
    facts = read_json(out / "study.json")
    write_json(out / "study.json", facts | {"trial_ids": [trial.trial_id for trial in trials]})
    return folder.survey(out, trials, job.corpus.sha256, set_aside=False)
