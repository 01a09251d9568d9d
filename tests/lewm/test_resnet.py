import pytest
import torch

from lewm.identity import trial_id
from lewm.methods import make_method
from lewm.overrides import make_config
from lewm.resnet import ResNet18

SMALL = {
    "model.encoder": "resnet18",
    "model.resnet_channels": 4,
    "model.image_size": 32,
    "model.patch_size": 16,
    "model.latent_dim": 16,
    "model.projector_hidden": 32,
    "model.predictor_depth": 1,
    "model.predictor_mlp": 32,
}


def test_the_standard_network_has_its_published_size_and_names() -> None:
    net = ResNet18(224, 64)
    assert sum(p.numel() for p in net.parameters()) == 11_689_512 - 513_000  # less the classifier
    names = set(net.state_dict())
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.running_var"} <= names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias"} <= names
    assert not any(name.startswith("layer1.0.downsample") for name in names)


@pytest.mark.parametrize("size", [32, 64, 98])
def test_frames_do_not_interact_in_evaluation_and_keep_their_order(size: int) -> None:
    torch.manual_seed(0)
    net = ResNet18(size, 4).eval()
    images = torch.randn(5, 3, size, size)
    with torch.no_grad():
        together = net(images)
        apart = torch.cat([net(images[i : i + 1]) for i in range(5)])
    assert together.shape == (5, 32) == (5, net.width)
    assert torch.allclose(together, apart, atol=1e-5)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="64x64 px, the model takes 32x32"):
        ResNet18(32, 4)(torch.zeros(1, 3, 64, 64))


def test_lewm_trains_every_part_of_it_and_a_default_trial_keeps_its_identity() -> None:
    torch.manual_seed(0)
    config = make_config(SMALL)
    method = make_method(config, 2).train()
    frames = torch.randn(4, 4, 3, 32, 32)
    z = method.encode(frames)
    assert z["z"].shape == (4, 4, 16) and z["cls"].shape == (4, 4, 32)
    z["z"].square().sum().backward()
    assert all(p.grad is not None for p in method.encoder.parameters())
    same = make_config({k: v for k, v in SMALL.items() if "encoder" not in k and "resnet" not in k})
    assert trial_id(config) != trial_id(same)
    assert trial_id(make_config({"model.encoder": "vit"})) == trial_id(make_config({}))
