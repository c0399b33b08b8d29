"""The process that holds a tracker's library: reads one JSON object a line, and tells wandb, trackio or mlflow.

`start` (run, name, group, config), `log` (run, step, values), `end` (run, step, status, final), `figures` (paths). Offline modes, addresses
and accounts are the libraries' own variables: WANDB_MODE, WANDB_PROJECT, TRACKIO_DIR, TRACKIO_SPACE_ID, MLFLOW_TRACKING_URI and so on.

    python -m study.display.tracker_process wandb quick 0c9b55aa < events
"""

import importlib
import json
import os
import sys
from typing import Any

STUDY_RUN = "_study"


class Wandb:
    """Weights & Biases, and Trackio, whose calls are the same but for how a run is resumed and what else is measured."""

    def __init__(self, name: str, project: str, key: str) -> None:
        self.library: Any = importlib.import_module(name)
        self.key, self.runs, self.has_ids = key, dict[str, Any](), name == "wandb"
        if self.has_ids:
            quiet = self.library.Settings(console="off", silent=True, x_disable_stats=True, x_save_requirements=False, disable_git=True)
            self.always = {"project": os.environ.get("WANDB_PROJECT", project), "reinit": "create_new", "settings": quiet}
        else:
            self.always = {"project": project, "embed": False, "auto_log_cpu": False, "auto_log_gpu": False}

    def start(self, run: str, name: str, group: str, config: dict[str, Any]) -> None:
        """Begin or resume: wandb by an id, trackio by the name."""
        own = {"id": f"{run}-{self.key}"} if self.has_ids else {}
        self.runs[run] = self.library.init(name=name, group=group, config=config, resume="allow", **own, **self.always)

    def log(self, run: str, step: int, values: dict[str, float]) -> None:
        """Scalars at so many training tokens."""
        self.runs[run].log(values, step=step)

    def end(self, run: str, step: int, status: str, final: dict[str, float]) -> None:
        """The last row under `final/`."""
        self.runs[run].log({f"final/{name}": value for name, value in final.items()}, step=step)
        failed = {"exit_code": int(status not in ("COMPLETED", "STOPPED"))} if self.has_ids else {}
        self.runs.pop(run).finish(**failed)

    def figures(self, paths: dict[str, str]) -> None:
        """Images in the run of the study."""
        self.start(STUDY_RUN, STUDY_RUN, STUDY_RUN, {})
        self.runs[STUDY_RUN].log({f"plots/{name}": self.library.Image(path) for name, path in paths.items()})
        self.runs.pop(STUDY_RUN).finish()


class Mlflow:
    """MLflow, by its client: several runs are open at a time."""

    def __init__(self, name: str, project: str, key: str) -> None:
        self.library: Any = importlib.import_module(name)
        self.client, self.key, self.runs = self.library.MlflowClient(), key, dict[str, str]()
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", project)
        known = self.client.get_experiment_by_name(project)
        self.experiment = known.experiment_id if known else self.client.create_experiment(project)

    def start(self, run: str, name: str, group: str, config: dict[str, Any]) -> None:
        """Begin a run, or open the one that has its tag again."""
        tag = f"{run}-{self.key}"
        known = self.client.search_runs([self.experiment], f"tags.scaling_study = '{tag}'", max_results=1)
        if known:
            self.client.update_run(known[0].info.run_id, status="RUNNING")
            self.runs[run] = known[0].info.run_id
            return
        tags = {"scaling_study": tag, "group": group}
        self.runs[run] = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        params = [self.library.entities.Param(field, str(value)) for field, value in config.items()]
        self.client.log_batch(self.runs[run], params=params)

    def log(self, run: str, step: int, values: dict[str, float]) -> None:
        """Scalars at so many training tokens."""
        for name, value in values.items():
            self.client.log_metric(self.runs[run], name, value, step=step)

    def end(self, run: str, step: int, status: str, final: dict[str, float]) -> None:
        """The last row under `final/`."""
        self.log(run, step, {f"final/{name}": value for name, value in final.items()})
        ended = {"COMPLETED": "FINISHED", "STOPPED": "FINISHED", "INTERRUPTED": "KILLED"}
        self.client.set_terminated(self.runs.pop(run), ended.get(status, "FAILED"))

    def figures(self, paths: dict[str, str]) -> None:
        """Artifacts in the run of the study."""
        self.start(STUDY_RUN, STUDY_RUN, STUDY_RUN, {})
        for path in paths.values():
            self.client.log_artifact(self.runs[STUDY_RUN], path, "plots")
        self.end(STUDY_RUN, 0, "COMPLETED", {})


def main(name: str, project: str, key: str) -> int:
    """Tell the tracker what standard input says, to its end; a failure ends it with the reason as the last line."""
    try:
        library: Wandb | Mlflow = Mlflow(name, project, key) if name == "mlflow" else Wandb(name, project, key)
        for line in sys.stdin:
            event = json.loads(line)
            getattr(library, event.pop("do"))(**event)
    except Exception as error:  # whatever a library raises: the driver reads the last line
        print(f"\n{' '.join(str(error).split()) or type(error).__name__}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
