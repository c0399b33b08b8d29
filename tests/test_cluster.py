"""cluster.yaml and clusters/: Ray accepts them, versions are ours, nothing is open to the world, a simulated AWS takes them."""

import copy
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.aws.node_provider import list_ec2_instances

ROOT = Path(__file__).parent.parent
LAUNCHER_FILES = ["cluster.yaml", "clusters/on_prem.yaml"]
ALL_FILES = [*LAUNCHER_FILES, *(f"clusters/{name}" for name in ("aws_account.yaml", "kuberay.yaml", "slurm.sh"))]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PLACEHOLDERS = re.compile(r"\b(ami-[01]{17}|sg-0{17}|192\.0\.2\.\d+)\b")
REGION = "us-west-2"
ASK_MACHINE_TYPES = list_ec2_instances


def load(name: str) -> dict[str, Any]:
    """A launcher file as `ray up` reads it."""
    return yaml.safe_load((ROOT / name).read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray's launcher makes of a file before it asks any cloud, checked against Ray's schema."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    result = util.prepare_config(copy.deepcopy(config))
    util.validate_config(result)
    return result


def runtime_dependencies() -> set[str]:
    """Names of the packages that pyproject.toml requires."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return {re.split(r"[\[><=~ ]", text)[0] for text in dependencies}


# ---- what the files say ----


def test_ray_refuses_a_misspelled_key() -> None:
    with pytest.raises(Exception, match="idle_timeout_minute"):
        prepared({**load("cluster.yaml"), "idle_timeout_minute": 5})


@pytest.mark.parametrize("name", ALL_FILES)
def test_every_pinned_version_equals_constraints_and_every_line_that_a_user_must_change_is_marked(name: str) -> None:
    text = (ROOT / name).read_text()
    pins = re.findall(r"([a-z][a-z0-9_-]+)(?:\[[a-z,]+\])?==([0-9.]+)", text)
    assert all(PINS.get(package) == version for package, version in pins), pins
    for version in re.findall(r"rayproject/ray:([0-9.]+)-|rayVersion: \"([0-9.]+)\"", text):
        assert "".join(version) == PINS["ray"]
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("# ")]
    assert not [line for line in lines if (PLACEHOLDERS.search(line) or "YOUR-" in line) and "CHANGE" not in line]


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_every_machine_gets_every_dependency_and_asks_for_the_token_and_the_dashboard_listens_on_loopback_only(name: str) -> None:
    config = prepared(load(name))
    for role in ("head", "worker"):
        commands = " ".join(config[f"{role}_setup_commands"])
        missing = {package for package in runtime_dependencies() if not re.search(rf"[\s\"]{package}(\[[a-z,]+\])?==", commands)}
        assert not missing, f"{role} lacks {missing}"
        assert commands.count("-c ~/constraints.txt") == commands.count("uv pip install")
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all(command.startswith("export RAY_AUTH_MODE=token") for command in starts if "ray " in command)
    assert set(config["file_mounts"]) == {"~/.ray/auth_token", "~/constraints.txt"}  # and none carries code
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "0.0.0.0" not in (ROOT / name).read_text()


def test_the_head_trains_nothing_and_no_worker_waits_idle() -> None:
    config = prepared(load("cluster.yaml"))
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert {name: body["min_workers"] for name, body in types.items() if name != "head"} == {"gpu_spot": 0, "gpu_ondemand": 0}
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["gpu_ondemand"]["node_config"]
    for body in types.values():
        disk = body["node_config"]["BlockDeviceMappings"][0]["Ebs"]
        assert disk["VolumeSize"] >= 60
        assert disk["Encrypted"] is True
        assert body["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_kubernetes_is_reached_from_inside_only() -> None:
    claim, cluster = yaml.safe_load_all((ROOT / "clusters/kuberay.yaml").read_text())
    spec = cluster["spec"]
    assert (claim["kind"], cluster["kind"]) == ("PersistentVolumeClaim", "RayCluster")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["minReplicas"] for group in spec["workerGroupSpecs"]] == [0]
    mounted = spec["headGroupSpec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert mounted == claim["metadata"]["name"]


SLURM_STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "echo localhost",
    "nvidia-cuda-mps-control": 'echo "mps $* in $CUDA_MPS_PIPE_DIRECTORY" >> log; exit 1',
    "ray": '[ "$1" = get-auth-token ] || printf "%s|" ray "$@" >> log',
}


def test_each_machine_of_a_slurm_job_starts_mps_and_then_ray_even_where_mps_is_refused(tmp_path: Path) -> None:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").touch()
    for name, text in SLURM_STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "47110815", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "any"}
    job |= {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run(["bash", str(ROOT / "clusters/slurm.sh"), "smoke", "--question", "a b"], cwd=tmp_path, env=job, check=True)
    Path("/tmp/mps-47110815").rmdir()
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == "mps -d in /tmp/mps-47110815"
    assert second.startswith("ray|symmetric-run|--address|")
    assert "--|python|-m|study.run|smoke|--question|a b|--address|" in second


# ---- the AWS account's part ----


def template() -> dict[str, Any]:
    """clusters/aws_account.yaml with its intrinsic functions as plain mappings."""
    decode = pytest.importorskip("cfnlint.decode.cfn_yaml")
    return json.loads(json.dumps(decode.load(str(ROOT / "clusters/aws_account.yaml"))))


def statements(policy: str) -> list[dict[str, Any]]:
    """Statements of one managed policy of the template."""
    found = template()["Resources"][policy]["Properties"]["PolicyDocument"]["Statement"]
    return [{**s, "Action": [s["Action"]] if isinstance(s["Action"], str) else s["Action"]} for s in found]


def test_cloudformation_accepts_the_template() -> None:
    api = pytest.importorskip("cfnlint.api")
    matches = api.lint_file(ROOT / "clusters/aws_account.yaml", config=api.ManualArgs(regions=[REGION]))
    assert [f"line {m.linenumber}: {m.message}" for m in matches] == []


def test_the_roles_may_do_what_they_must_and_no_more() -> None:
    for s in statements("ResultsPolicy") + statements("ScalingPolicy"):
        assert s["Effect"] == "Allow"
        assert not any("*" in action for action in s["Action"])
        if s["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in s["Action"])
    by_name = {s["Sid"]: s for s in statements("ScalingPolicy")}
    assert by_name["GiveWorkersTheirRole"]["Resource"] == {"Fn::GetAtt": ["WorkerRole", "Arn"]}
    assert by_name["OwnMachinesOnly"]["Condition"] == {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": {"Ref": "Cluster"}}}
    attached = template()["Resources"]["ScalingPolicy"]["Properties"]["Roles"]
    assert attached == [{"Ref": "HeadRole"}]


def test_the_account_allows_the_machines_and_the_name_of_the_cluster_file() -> None:
    config, parameters = load("cluster.yaml"), template()["Parameters"]
    workers = [body["node_config"]["InstanceType"] for name, body in config["available_node_types"].items() if name != "head"]
    assert set(workers) <= set(parameters["WorkerTypes"]["Default"].split(","))
    assert config["cluster_name"] == parameters["Cluster"]["Default"]


@pytest.mark.parametrize(
    ("addresses", "allowed"), [("203.0.113.7/32", True), ("10.1.0.0/16", True), ("0.0.0.0/0", False), ("10.0.0.0/8", False)]
)
def test_ssh_is_let_in_from_few_addresses_only(addresses: str, allowed: bool) -> None:
    assert bool(re.match(template()["Parameters"]["SshFrom"]["AllowedPattern"], addresses)) is allowed


# ---- Ray's AWS bootstrap against a simulated AWS ----


@cache
def machine_types(region: str, aws_credentials: Any = None) -> list[dict[str, Any]]:
    """Ray's own question to AWS, asked once: the simulated list is long and the same for every account."""
    return ASK_MACHINE_TYPES(region, aws_credentials)


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A simulated AWS account in this process, with made-up credentials and a home folder of its own."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("HOME", str(tmp_path))
    from ray.autoscaler._private.aws import config, node_provider, utils

    monkeypatch.setattr(node_provider, "list_ec2_instances", machine_types)
    caches = [value for module in (config, utils) for value in vars(module).values() if hasattr(value, "cache_clear")]
    with moto.mock_aws():
        for cache in caches:  # Ray keeps clients and answers of the account before
            cache.cache_clear()
        yield pytest.importorskip("boto3")
    for cache in caches:
        cache.cache_clear()


def make_account(boto3: Any) -> str:
    """Create the stack of clusters/aws_account.yaml; returns the security group's id."""
    cloud = boto3.client("cloudformation", REGION)
    given = {"SshFrom": "203.0.113.7/32", "Bucket": "results-of-a-test"}
    cloud.create_stack(
        StackName="scaling-study",
        TemplateBody=(ROOT / "clusters/aws_account.yaml").read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
    )
    outputs = cloud.describe_stacks(StackName="scaling-study")["Stacks"][0]["Outputs"]
    return next(o["OutputValue"] for o in outputs if o["OutputKey"] == "SecurityGroup")


def changed(boto3: Any, group: str) -> dict[str, Any]:
    """cluster.yaml with the lines marked CHANGE filled in."""
    image = boto3.client("ec2", REGION).describe_images()["Images"][0]["ImageId"]
    text = (ROOT / "cluster.yaml").read_text().replace("sg-00000000000000000", group)
    return yaml.safe_load(re.sub(r"ami-[01]{17}", image, text))


def bootstrapped(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray makes of the file after asking AWS for everything that the file leaves open."""
    from ray.autoscaler.sdk import bootstrap_config

    return bootstrap_config(prepared(config), no_config_cache=True)


def open_to_the_world(boto3: Any) -> list[str]:
    """Names of security groups with a rule for every address."""
    groups = boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]
    rules = [(group["GroupName"], [*rule["IpRanges"], *rule["Ipv6Ranges"]]) for group in groups for rule in group["IpPermissions"]]
    return [name for name, ranges in rules if any({"0.0.0.0/0", "::/0"} & set(one.values()) for one in ranges)]


def test_aws_takes_the_cluster_and_nothing_is_open_to_the_world(aws: Any) -> None:
    group = make_account(aws)
    config = bootstrapped(changed(aws, group))
    types = config["available_node_types"]
    for name in ("gpu_spot", "gpu_ondemand"):
        assert (types[name]["resources"]["GPU"], types[name]["resources"]["CPU"]) == (1, 4)
    assert types["head"]["resources"]["CPU"] == 0
    assert all(body["node_config"]["SecurityGroupIds"] == [group] for body in types.values())
    assert all(body["node_config"]["SubnetIds"] for body in types.values())
    assert open_to_the_world(aws) == []
    rules = aws.client("ec2", REGION).describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    ports = [(rule.get("FromPort"), rule.get("ToPort")) for rule in rules if rule["IpRanges"]]
    assert ports == [(22, 22)]
    profiles = {body["node_config"]["IamInstanceProfile"]["Name"] for body in types.values()}
    assert profiles == {p["InstanceProfileName"] for p in aws.client("iam").list_instance_profiles()["InstanceProfiles"]}


def test_without_our_group_ray_opens_ssh_to_the_world(aws: Any) -> None:
    """Why cluster.yaml names a security group: Ray's own is open, and the check above sees it."""
    config = changed(aws, make_account(aws))
    for body in config["available_node_types"].values():
        del body["node_config"]["SecurityGroupIds"]
    bootstrapped(config)
    assert open_to_the_world(aws) == ["ray-autoscaler-scaling-study"]


def test_an_unchanged_file_starts_nothing(aws: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):  # Ray's launcher gives up so
        bootstrapped(load("cluster.yaml"))
    assert "Failed to detect a security group with id equal to any of the configured SecurityGroupIds" in capfd.readouterr().err
    assert aws.client("ec2", REGION).describe_instances()["Reservations"] == []
