"""ray_cluster.yaml and the recipes in docs/ against the validators of Ray, EC2 and the shell, offline."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PATH = ROOT / "ray_cluster.yaml"
RECIPES = {"kuberay.yaml": "RayJob", "slurm.sbatch": None}
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@pytest.fixture
def config():
    return yaml.safe_load(PATH.read_text())


def commands(config):
    return [command for key in COMMANDS for command in config[key]]


def starts(config):
    """The arguments of every `ray start` of the file."""
    found = [re.search(r"ray start (.*)", c, re.DOTALL) for c in commands(config)]
    return [shlex.split(match.group(1)) for match in found if match]


def validate(config):
    """By Ray's defaults, its JSON schema and its own rules."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_the_cluster_file_is_valid(config):
    validate(config)


def test_every_default_that_ray_would_fill_in_is_written_out(config):
    from ray.autoscaler._private.util import fillout_defaults

    assert set(fillout_defaults(config)) == set(config)


@pytest.mark.parametrize("where", ["top", "type", "auth"])
def test_a_misspelt_key_is_refused(config, where):
    place = {"top": config, "auth": config["auth"]}.get(
        where, config["available_node_types"]["gpu_spot"]
    )
    place["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate(config)


@pytest.mark.parametrize("kind", ["head", "gpu_spot", "gpu_on_demand"])
def test_ec2_knows_every_field_of_a_machine(config, kind):
    """Ray checks nothing of `node_config`; the request it becomes has a model of its own."""
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    machine = config["available_node_types"][kind]["node_config"] | {"MinCount": 1, "MaxCount": 1}
    assert not ParamValidator().validate(machine, shape).has_errors()
    torn = ParamValidator().validate(machine | {"IamInstanceProfil": {}}, shape)
    assert "IamInstanceProfil" in torn.generate_report()


@pytest.mark.ci
def test_rays_aws_provider_starts_every_kind_of_machine(tmp_path, monkeypatch):
    """Against a simulated EC2: what `ray up` and its autoscaler ask for, as far as the machine itself."""
    moto = pytest.importorskip("moto")
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler._private.util import prepare_config

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("HOME", str(tmp_path))
    with moto.mock_aws():
        ec2 = boto3.client("ec2")
        for role in ("head", "worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=f"lewm-{role}")
        image = ec2.describe_images()["Images"][0]["ImageId"]
        text = PATH.read_text().replace("<zone>,<zone>", "us-east-1a,us-east-1b")
        filled = text.replace("<region>", "us-east-1").replace("<ami>", image)
        config = bootstrap_aws(prepare_config(yaml.safe_load(filled)))
        provider = _get_node_provider(config["provider"], "lewm", use_cache=False)
        tags = {"ray-node-type": "worker", "ray-node-status": "uninitialized"}
        for kind, node_type in config["available_node_types"].items():
            provider.create_node(dict(node_type["node_config"]), {**tags, "ray-user-node-type": kind}, 1)  # fmt: skip
        found = {}
        for reservation in ec2.describe_instances()["Reservations"]:
            for machine in reservation["Instances"]:
                kind = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}["ray-user-node-type"]
                profile = machine["IamInstanceProfile"]["Arn"].rpartition("/")[2]
                found[kind] = machine.get("InstanceLifecycle"), profile
    assert found == {
        "head": (None, "lewm-head"),
        "gpu_spot": ("spot", "lewm-worker"),
        "gpu_on_demand": (None, "lewm-worker"),
    }


def test_the_policies_of_the_guide_are_json():
    guide = (ROOT / "docs" / "clusters.md").read_text()
    found = re.findall(r"cat > (\w+)\.json <<'?END'?\n(.*?)\nEND", guide, re.DOTALL)
    policies = {name: json.loads(text) for name, text in found}
    assert set(policies) == {"trust", "worker", "head"}
    assert "s3:*" not in guide and "ec2:*" not in guide


def test_the_head_trains_nothing_and_spot_comes_first(config):
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0} and types["head"]["max_workers"] == 0
    spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert spot["min_workers"] == on_demand["min_workers"] == 0
    assert spot["priority"] > on_demand["priority"]
    assert spot["max_workers"] <= config["max_workers"] and config["max_workers"] > 2
    assert 1 <= config["idle_timeout_minutes"] <= 10


def test_every_node_has_the_projects_ray_and_one_python(config):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = re.findall(r"ray\[default\]==([\d.]+)", "\n".join(config["setup_commands"]))
    assert f"ray=={pin}\n" in (ROOT / "constraints.txt").read_text()
    assert f"ray[tune]>={pin.rpartition('.')[0]}," in " ".join(project["dependencies"])
    pythons = set(re.findall(r"python(3\.\d+)", "\n".join(commands(config))))
    assert len(pythons) == 1
    extras = set(project["optional-dependencies"])
    (asked,) = re.findall(r"-e '\.\[([\w,]+)\]'", "\n".join(config["setup_commands"]))
    assert set(asked.split(",")) <= extras


def test_nothing_listens_beyond_loopback_but_ray_between_its_nodes(config):
    text = "\n".join(commands(config))
    assert "0.0.0.0" not in text
    hosts = re.findall(r"--(?:dashboard-)?host=(\S+)", text)
    assert hosts and set(hosts) == {"127.0.0.1"}
    assert "IpPermissions" not in PATH.read_text()


def test_every_ray_asks_for_the_token_and_every_node_gets_it(config):
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("RAY_AUTH_MODE=token ray start" in command for command in config[key])
    assert not re.search(r"AKIA|SECRET|PASSWORD|TOKEN=", PATH.read_text())


def test_ray_start_knows_the_flags(config):
    from ray.scripts.scripts import start

    head, worker = starts(config)
    assert start.make_context("start", head).params["head"]
    start.make_context("start", worker)
    with pytest.raises(Exception, match="dashbord-host"):
        start.make_context("start", ["--dashbord-host=127.0.0.1"])


def test_the_shell_understands_every_command(config):
    for command in commands(config):
        subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)


def test_the_environment_reaches_whoever_logs_in(config, tmp_path):
    """The command that writes it, run as Ray runs it, twice: what a shell of the node then sees."""
    from ray.autoscaler._private.command_runner import _with_interactive

    (write,) = [c for c in config["setup_commands"] if "lewm.env" in c]
    write = re.sub(r"<([a-z]+)>", r"my-\1", write)
    (tmp_path / ".bashrc").write_text("# empty\n")
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        shlex_command = " ".join(_with_interactive(write))
        subprocess.run(["bash", "-c", shlex_command], env=environment, check=True, timeout=20)
    show = '. ~/.bashrc; echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH $MUJOCO_GL $LEWM_STORAGE"'
    seen = subprocess.run(["bash", "-c", show], env=environment, capture_output=True, text=True)
    assert seen.stdout.split() == ["token", f"{tmp_path}/.ray/auth_token", "egl", "s3://my-bucket/my-prefix"]  # fmt: skip
    assert (tmp_path / ".bashrc").read_text().count("lewm.env") == 1


def test_what_is_left_to_fill_in_is_listed_in_the_guide():
    guide = (ROOT / "docs" / "clusters.md").read_text()
    for name in ("ray_cluster.yaml", *(f"docs/{recipe}" for recipe in RECIPES)):
        left = set(re.findall(r"<([a-z][a-z-]*)>", (ROOT / name).read_text()))
        assert left, name
        for placeholder in left:
            assert f"`<{placeholder}>`" in guide, (
                f"{name}: <{placeholder}> is not in docs/clusters.md"
            )


def test_the_recipes_parse():
    job = yaml.safe_load((ROOT / "docs" / "kuberay.yaml").read_text())
    assert job["kind"] == "RayJob" and job["apiVersion"] == "ray.io/v1"
    subprocess.run(["bash", "-n", str(ROOT / "docs" / "slurm.sbatch")], check=True, timeout=10)
    for name in RECIPES:
        text = (ROOT / "docs" / name).read_text()
        (image,) = set(re.findall(r"2\.60\.\d+", text)) or {"2.60.0"}
        assert f"ray=={image}\n" in (ROOT / "constraints.txt").read_text()
        assert "token" in text
