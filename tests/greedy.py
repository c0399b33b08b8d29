"""Workers for tests on fake GPUs (device=cpu): `python -m tests.greedy KIND NODES [arguments of study.run]`.

`greedy` needs more than a third of a GPU and raises torch's own error on less; `placed` only says where it trains. Both train for real and
append to placed.log beside the results one JSON line per bundle begun and ended.
"""

import json
import sys
import time
from typing import Any

import ray
import torch

from study import run
from study.tune import environment, session, worker_input
from study.tune import trainable as trial


class Placed(trial.BundleTrainable):
    """Says on which node and GPU each bundle begins and ends."""

    log = ""

    def _say(self, what: str) -> None:
        share = self.trial_resources.required_resources.get("GPU", 0) if self.trial_resources else 0
        place = {"node": ray.get_runtime_context().get_node_id(), "gpus": ray.get_gpu_ids(), "share": share}
        with open(self.log, "a") as file:
            file.write(
                json.dumps({"what": what, "at": time.monotonic(), "trial": self.work.bundles[self.index].trials[0].trial_id, **place})
                + "\n"
            )

    def setup(self, config: dict[str, Any], work: worker_input.Work) -> None:  # type: ignore[override]
        self.index, self.log = config["bundle"], str(work.checkpoints.parent.parent / "placed.log")
        super().setup(config, work)
        self._say("begins")

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.index = config["bundle"]
        done = super().reset_config(config)
        self._say("begins")
        return done

    def step(self) -> dict[str, Any]:
        result = super().step()
        if result["done"]:
            self._say("ends")
        return result


class Greedy(Placed):
    """Runs out of memory after its first step on a share below one third."""

    def step(self) -> dict[str, Any]:
        assert self.trial_resources is not None
        self.n_steps = getattr(self, "n_steps", 0) + 1
        if self.n_steps > 1 and self.trial_resources.required_resources["GPU"] < 1 / 3:
            self._say("ends")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than this fake GPU's share")
        return super().step()


def main() -> int:
    """Start a Ray with fake GPUs and run a study on it."""
    kind, n_nodes, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    environment.set_ray_environment()
    session.BundleTrainable = {"greedy": Greedy, "placed": Placed}[kind]  # type: ignore[misc]
    if n_nodes == 1:
        ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
        return run.main(arguments)
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 2**20, "num_cpus": 4, "num_gpus": 2}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **small})
    for _ in range(n_nodes - 1):
        cluster.add_node(**small)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        return run.main(arguments)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    from tests import greedy

    sys.exit(greedy.main())
