"""Backbones by name, and what is said when one does not work."""

import copy
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from unmuddle.recipe.backbones import StridedDepthwise, avoid_slow_bf16, build_backbone
from unmuddle.recipe.errors import UsageError
from unmuddle.recipe.model import Classifier


def tiny_network() -> nn.Module:
    return nn.Conv2d(3, 20, 3, stride=4)


def raises() -> nn.Module:
    raise KeyError("inside")


def not_a_network() -> str:
    return "no"


@pytest.mark.parametrize(
    ("name", "size", "channels", "map_size"),
    [
        ("small", 48, 192, (6, 6)),
        ("small", 32, 192, (4, 4)),
        ("mobilefacenet", 112, 512, (7, 7)),
        ("mobilefacenet", 48, 512, (3, 3)),
        ("resnet18", 48, 512, (3, 3)),  # 2 x 2 without the first stride's removal
        ("resnet18", 224, 512, (7, 7)),
        ("torchvision/resnet18", 96, 512, (3, 3)),
        ("mobilenetv3_small_050", 96, 288, (3, 3)),
        ("squeezenet1_1", 64, 512, (3, 3)),
        pytest.param("vgg11", 96, 512, (3, 3), marks=pytest.mark.slow),
        ("tests.recipe.test_backbones:tiny_network", 48, 20, (12, 12)),
    ],
)
def test_names_give_a_map_that_the_whole_model_trains_on(
    name: str, size: int, channels: int, map_size: tuple[int, int]
) -> None:
    backbone = build_backbone(name, size)
    assert (backbone.channels, backbone.map_size) == (channels, map_size)
    model = Classifier(backbone, 5, {"arm", "supcon"})
    out = model(torch.randn(2, 3, size, size))
    assert out.logits.shape == (2, 5)
    assert out.features.shape == (2, model.feature_dim)
    assert out.embeddings.shape == (2, 128)
    (out.logits.sum() + out.embeddings[:, 0].sum()).backward()
    first, *_ = backbone.network.parameters()
    assert first.grad.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet1", "neither timm nor torchvision; did you mean .*resnet1"),
        ("qqqq", "neither timm nor torchvision$"),
        ("vit_tiny_patch16_224", "feature map"),
        ("torchvision/vit_b_16", "feature map"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("tests.recipe.test_backbones:missing", "missing"),
        ("tests.recipe.test_backbones:raises", "KeyError: 'inside'"),
        ("tests.recipe.test_backbones:not_a_network", "expected an nn.Module, got str"),
    ],
)
def test_what_does_not_work_is_told(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_backbone(name, 224)


def test_weights_round_trip_in_both_formats(tmp_path: Path) -> None:
    source = build_backbone("small", 48).network
    state = source.state_dict() | {"fc.weight": torch.zeros(3, 3)}  # a foreign head is not used
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        backbone = build_backbone("small", 48, weights=str(tmp_path / name))
        assert backbone.unused == ("fc.weight",)
        loaded = backbone.network.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_fewer_features_than_classes_are_warned_of() -> None:
    backbone = build_backbone("small", 24)
    assert backbone.map_size == (3, 3)
    with pytest.warns(UserWarning, match="out_features = 9 for a 3 x 3 map is less than num_cl"):
        Classifier(backbone, 10, {"published_arm"})
    Classifier(backbone, 9, {"published_arm"})


FACES = os.environ.get("UNMUDDLE_MOBILEFACENET")


@pytest.mark.skipif(FACES is None, reason="needs UNMUDDLE_MOBILEFACENET, a file of its weights")
def test_published_weights_of_mobilefacenet_fit() -> None:
    backbone = build_backbone("mobilefacenet", 112, weights=FACES)
    assert backbone.unused == ()
    assert backbone.pixels == ((0.5,) * 3, (0.5,) * 3)


def test_pretrained_networks_name_the_pixels_that_they_expect(tmp_path: Path) -> None:
    def pixels(name: str, weights: dict[str, torch.Tensor] | None = None):
        network = build_backbone(name, 96).network
        state = getattr(network, "model", network).state_dict() if weights is None else weights
        safetensors.torch.save_file(state, tmp_path / "w.safetensors")
        return build_backbone(name, 96, weights=str(tmp_path / "w.safetensors")).pixels

    assert build_backbone("resnet18", 96).pixels is None
    assert pixels("resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert pixels("torchvision/resnet18") == pixels("resnet18")
    assert pixels("tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)  # timm's own
    assert pixels("small") is None
    # The model of a run says itself what it was trained with.
    state = Classifier(build_backbone("small", 48), 3, ()).state_dict()
    assert pixels("small", state) is None
    halves = {"standardize.mean": torch.full((3,), 0.5), "standardize.std": torch.full((3,), 0.25)}
    assert pixels("small", state | halves) == ([0.5] * 3, [0.25] * 3)


def test_strided_depthwise_convolutions_ignore_autocast_and_nothing_else_changes() -> None:
    network = build_backbone("mobilefacenet", 64).network.eval()
    images = torch.rand(2, 3, 64, 64)
    before, names = network(images), set(network.state_dict())
    avoid_slow_bf16(network)
    network = copy.deepcopy(network)
    assert torch.equal(network(images), before)
    assert set(network.state_dict()) == names
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    exempt = [module for module in convolutions if isinstance(module, StridedDepthwise)]
    assert exempt == [c for c in convolutions if c.groups > 1 and c.stride == (2, 2)]
    assert len(exempt) == 3
    with torch.autocast("cpu", torch.bfloat16):
        assert exempt[0](images.new_zeros(1, exempt[0].in_channels, 8, 8)).dtype == torch.float32


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_weights_that_do_not_fit_are_told_and_no_code_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Trap()}, tmp_path / "trap.pt")
    safetensors.torch.save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"junk")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("hello")
    for name, message in (
        ("trap.pt", "cannot be loaded"),
        ("broken.safetensors", "cannot be loaded"),
        ("missing.pt", "cannot be loaded"),
        ("empty.pt", "cannot be loaded"),
        ("text.pt", "cannot be loaded"),
        ("other.safetensors", "lacks .* tensors, the first conv1.weight"),
    ):
        with pytest.raises(UsageError, match=message):
            build_backbone("small", 48, weights=name)
    assert not (tmp_path / "trapped").exists()
