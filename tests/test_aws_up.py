"""cluster.yaml from `ray up` to `ray down` on a simulated AWS: a spot machine comes when trials wait and goes when idle.

The AWS is moto's server; its machines are hosts made of namespaces (tests/hosts.py). Shown: the file, the scaling, a study with shares of
a GPU that is Ray's bookkeeping only. Not shown: machine images, drivers, rights of roles, quotas.
"""

import json
import time
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
import yaml

from tests import hosts as host_tools
from tests.hosts import Hosts, Step, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.ray]

REGION = "us-west-2"
STUDY = "python -m study.run smoke --gpus-per-trial 0.25 --device cpu --out '~/results/smoke'"
ASK = """
import boto3, json
states = [i for r in boto3.client("ec2", "us-west-2").describe_instances()["Reservations"] for i in r["Instances"]]
print(json.dumps([[i["InstanceType"], i.get("InstanceLifecycle", "on demand"), i["State"]["Name"]] for i in states]))
"""
MAKE_ACCOUNT = """
import boto3, pathlib
cloud = boto3.client("cloudformation", "us-west-2")
cloud.create_stack(StackName="s", TemplateBody=pathlib.Path("clusters/aws_account.yaml").read_text(), Capabilities=["CAPABILITY_NAMED_IAM"],
    Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in {"SshFrom": "10.77.0.0/24", "Bucket": "results-of-a-test"}.items()])
print(next(o["OutputValue"] for o in cloud.describe_stacks()["Stacks"][0]["Outputs"] if o["OutputKey"] == "SecurityGroup"))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    pytest.importorskip("moto.server", reason="needs moto and flask")
    with host_tools.started(["head", "spot"]) as started:
        copy_project(started.home("laptop") / "project")
        for source, target in (("laptop", "head"), ("head", "spot")):  # whatever address AWS names, this host answers
            connect = f"Host *\n  HostName {started.address[target]}\n  IdentityFile {started.folder}/keys/user\n"
            (started.home(source) / ".ssh" / "config").write_text(connect)
        yield started


@pytest.fixture(scope="module")
def step(hosts: Hosts) -> Step:
    """Run a shell command on the laptop, whose AWS is moto's server there."""
    hosts.start("laptop", ["python", "-m", "moto.server", "-H", hosts.address["laptop"], "-p", "5055"])
    run = host_tools.shell_on_laptop(hosts)

    def with_aws(command: str, **options: object) -> str:
        return run(command, **{**aws_environment(hosts), **options})

    deadline = time.monotonic() + 60
    while True:
        try:
            with_aws(f"python -c '{ASK}' 2> /dev/null", quiet=True)
            return with_aws
        except AssertionError:
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(1)


def aws_environment(hosts: Hosts) -> dict[str, str]:
    """Made-up credentials and the address of the simulated AWS."""
    keys = {"AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up", "AWS_DEFAULT_REGION": REGION}
    return keys | {"AWS_ENDPOINT_URL": f"http://{hosts.address['laptop']}:5055", "AWS_EC2_METADATA_DISABLED": "true"}


def change_lines(hosts: Hosts, group: str, image: str) -> None:
    """Fill in the lines marked CHANGE; leave out the installation, let the head find the simulated AWS and the worker find the head."""
    file = hosts.home("laptop") / "project" / "cluster.yaml"
    config = yaml.safe_load(file.read_text().replace("sg-00000000000000000", group))
    for body in config["available_node_types"].values():
        body["node_config"]["ImageId"] = image
    config["auth"]["ssh_user"] = "root"
    config["idle_timeout_minutes"] = 0.25
    config["setup_commands"] = [command for command in config["setup_commands"] if "/uv" not in command]
    config["head_setup_commands"] = config["worker_setup_commands"] = []
    exports = "export " + " ".join(f"{key}={value}" for key, value in aws_environment(hosts).items())
    config["head_start_ray_commands"] = [f"{exports}; {command}" for command in config["head_start_ray_commands"]]
    join = config["worker_start_ray_commands"][-1].replace("$RAY_HEAD_IP", hosts.address["head"])
    config["worker_start_ray_commands"][-1] = join
    file.write_text(yaml.safe_dump(config, sort_keys=False))


def machines(step: Step) -> list[list[str]]:
    """Type, market and state of every machine that the simulated AWS ever started."""
    return json.loads(step(f"python -c '{ASK}'", quiet=True).splitlines()[-1])


def test_a_spot_machine_comes_for_a_study_and_goes_when_idle(hosts: Hosts, step: Step) -> None:
    group = step(f"python -c '{MAKE_ACCOUNT}'", quiet=True).splitlines()[-1]
    find_image = 'import boto3; print(boto3.client("ec2").describe_images()["Images"][0]["ImageId"])'
    change_lines(hosts, group, step(f"python -c '{find_image}'", quiet=True).splitlines()[-1])
    step("ray get-auth-token --generate > /dev/null")
    step("ray up cluster.yaml -y --no-config-cache")
    assert machines(step) == [["m5.large", "on demand", "running"]]

    step("ray rsync-up cluster.yaml ./ '~/project/'")
    output = step(f'ray exec cluster.yaml "cd project && {STUDY} --address auto"', timeout=500)
    assert "14 of 14 trials are completed" in output
    started = [machine for machine in machines(step) if machine[0] == "g5.xlarge"]
    assert [market for _, market, _ in started] == ["spot"] * len(started)
    assert started, "no worker was started"
    step("ray rsync-down cluster.yaml '~/results/' ../results/")
    trials = pq.read_table(hosts.home("laptop") / "results" / "smoke" / "trials.parquet").to_pydict()
    assert set(trials["gpu_fraction"]) == {0.25}
    assert set(trials["host"]) == {"spot"}

    deadline = time.monotonic() + 180
    while any(state == "running" for kind, _, state in machines(step) if kind == "g5.xlarge"):
        assert time.monotonic() < deadline, machines(step)
        time.sleep(3)
    step("ray down cluster.yaml -y")
    assert not [machine for machine in machines(step) if machine[2] == "running"]
