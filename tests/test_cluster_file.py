"""ray_cluster.yaml against Ray's own validator and schema."""

from pathlib import Path

import pytest
import yaml

PATH = Path(__file__).parent.parent / "ray_cluster.yaml"


def validate(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_the_cluster_file_is_valid():
    validate(yaml.safe_load(PATH.read_text()))


def test_a_misspelt_key_is_refused():
    config = yaml.safe_load(PATH.read_text()) | {"max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate(config)


def test_defaults_that_bite_are_written_out():
    config = yaml.safe_load(PATH.read_text())
    assert config["setup_commands"] and config["max_workers"] > 2
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    for start in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in start
