"""`attach_arm` on the CNN families of torchvision and timm, and what is said when it cannot."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import thinned
from unmuddle import ARM, attach_arm, fold_arm
from unmuddle.arm import ARMClassifier, PublishedARM, erosion, find_features, from_authors
from unmuddle.arm.features import create_network
from unmuddle.testing import assert_within_budget, batch_invariance

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

# A small network of every CNN family, `name@image size` where 64 is too small for it.
FAST = """
torchvision/alexnet@96 torchvision/densenet121@96 torchvision/efficientnet_b0 torchvision/googlenet
torchvision/mnasnet0_5 torchvision/mobilenet_v2 torchvision/mobilenet_v3_small torchvision/resnet18
torchvision/regnet_y_400mf torchvision/shufflenet_v2_x0_5 torchvision/squeezenet1_1
convnext_atto cs3darknet_s cspnext_s dla46_c edgenext_xx_small efficientnet_lite0 efficientvit_b0
ese_vovnet19b_slim fasternet_t0 fbnetc_100 gernet_s ghostnet_050 hardcorenas_a hgnetv2_b0
hrnet_w18_small inception_next_atto lcnet_050 lcnetv2_small mambaout_femto mixnet_s mnasnet_small
mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobileone_s0
regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 resnest14d resnet18 resnetv2_18
rexnet_100 semnasnet_075 skresnet18 spnasnet_100 starnet_s1 tf_efficientnetv2_b0 tinynet_e
""".split()
SLOW = """
torchvision/convnext_tiny torchvision/efficientnet_v2_s torchvision/inception_v3@128
torchvision/regnet_x_400mf torchvision/resnet50 torchvision/resnext50_32x4d
torchvision/squeezenet1_0 torchvision/swin_t torchvision/vgg11 torchvision/vgg11_bn
torchvision/wide_resnet50_2 bat_resnext26ts@256 botnet26t_256@256 convmixer_768_32
convnextv2_atto cspresnet50 csatv2@128 darknet53 densenet121 dpn48b eca_nfnet_l0
efficientnet_b0 efficientnetv2_rw_t fastvit_t8 fbnetv3_b hgnet_tiny inception_resnet_v2@160
inception_v3@160 inception_v4@160 legacy_seresnet18 legacy_xception nasnetalarge@128
nf_resnet26 pnasnet5large@128 poolformer_s12 rdnet_tiny regnetz_b16 res2net50_14w_8s resnet26d
resnetblur18 selecsls42@128 tresnet_m vgg11 xception41 caformer_s18@128 coatnet_nano_rw_224@224
cpubone_t0@128 davit_tiny@128 efficientformerv2_s0@224 efficientvit_m0@224 focalnet_tiny_srf
iformer_t@128 lowformer_b0@128 mobilevit_xxs nextvit_small@128 pvt_v2_b0 sequencer2d_s@224
shvit_s1@128 swiftformer_xs@128 swin_tiny_patch4_window7_224@224 visformer_tiny@224
""".split()


# They take images of one size.
FIXED = """
bat_resnext26ts botnet26t_256 coatnet_nano_rw_224 efficientformerv2_s0 swin_tiny_patch4_window7_224
visformer_tiny
""".split()


class LastPooling(TorchDispatchMode):
    """Notes the size of the map that the last spatial pooling reads."""

    size: tuple[int, ...] = ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, x = func.name(), args[0] if args else None
        if isinstance(x, Tensor) and x.ndim == 4:
            if "adaptive" in name:
                self.size = tuple(x.shape[2:])
            elif name.startswith("aten::mean.dim") and len(args[1]) == 2:
                self.size = tuple(x.shape[dim] for dim in sorted(dim % 4 for dim in args[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torchvision's googlenet
@pytest.mark.parametrize(
    "name", [*thinned(FAST, 4), *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def test_attaches_before_the_pooling_trains_a_step_and_folds(name: str) -> None:
    name, _, size = name.partition("@")
    size = int(size or 64)
    torch.manual_seed(0)
    given = create_network(name).eval()
    model = attach_arm(given, 7, input_size=size)
    attached = [(size, model)]
    if name not in FIXED:
        larger = size * 3 // 2
        attached += [
            (larger, attach_arm(model.features, 7, input_size=larger, features=model.features))
        ]
    for side, network in attached:
        with torch.no_grad(), LastPooling() as pooling:
            given(torch.randn(1, 3, side, side))
        # timm's VGG has its first classifier layers before its pooling, as convolutions.
        expected = (side // 32,) * 2 if name == "vgg11" else pooling.size
        assert network.arm.input_size == expected

    images = torch.randn(4, 3, size, size)
    cross_entropy(model(images), torch.arange(4)).backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    folded = fold_arm(model)
    with torch.no_grad():
        x = model.eval().features(images)
        assert torch.equal(folded.features(images), x)
        published = PublishedARM(model.arm.in_channels, model.arm.input_size)
        published(x)  # a training batch
        for arm in (model.arm, published.eval()):
            truth, honest = copy.deepcopy(arm).double()(x.double()), arm(x)
            # One batch leaves small variances, whose inverses multiply terms that cancel.
            short = fold_arm(arm)
            product = short.weight if arm is model.arm else short.kernel
            terms = float(x.abs().max() * short.scale.abs().sum() * product.abs().sum())
            assert_within_budget(short(x), truth, honest, terms=terms)
            assert honest.shape == (4, arm.out_features)


class TwoStages(nn.Module):
    """A network for grey images, whose forward pools and classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(images)).mean((2, 3)))


def test_parts_of_a_network_of_ones_own_are_put_together_or_named() -> None:
    given = TwoStages()
    images = torch.randn(4, 1, 32, 32)
    expected = given.stage(given.stem(images))
    together = nn.Sequential(given.stem, given.stage)
    for options in ({"features": together}, {"at": "stage"}):
        model = attach_arm(given, 3, input_size=32, **options)
        assert torch.equal(model.features(images), expected)
        assert model(images).shape == (4, 3)
    with pytest.raises(ValueError, match="got one that reads .*put the parts before it"):
        attach_arm(given, 3, input_size=32, features=given.stage)
    same_channels = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 8, 3, 2, 1))
    with pytest.raises(ValueError, match="got one that reads"):
        attach_arm(same_channels, 3, input_size=32, features=same_channels[1])
    with pytest.raises(TypeError, match="name a part with at="):
        attach_arm(given, 3, input_size=32, features="stage")
    with pytest.raises(ValueError, match="arm: takes no map"):
        attach_arm(given, 3, input_size=32, at="stage", arm=lambda _, size: ARM(8, size))
    with pytest.raises(ValueError, match="input_size: expected at least 1"):
        attach_arm(given, 3, input_size=0, at="stage")
    batchwise = partial(PublishedARM, affinity="batch")  # warns when it predicts, not when attached
    attach_arm(given, 3, input_size=32, at="stage", arm=batchwise)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18", "mobilenetv3_small_050"])
def test_weights_are_kept_bit_for_bit_and_the_model_given_is_unchanged(name: str) -> None:
    library = torchvision.models.get_model if name.startswith("torchvision") else timm.create_model
    given = library(name.removeprefix("torchvision/"))
    before = copy.deepcopy(given.state_dict())
    model = attach_arm(given, 7, input_size=64)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert all(parameter.grad is None for parameter in given.parameters())
    kept = attach_arm(given, 7, input_size=64).features.model.state_dict()
    assert len(kept) > 50
    assert all(torch.equal(value, before[key]) for key, value in kept.items())


def test_the_map_is_what_the_pooling_of_the_network_reads() -> None:
    given = timm.create_model("resnet18").eval()
    x = torch.randn(2, 3, 64, 64)
    features = find_features(given).eval()
    torch.testing.assert_close(given.fc(features(x).mean((2, 3))), given(x))


def test_a_network_of_ones_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(3, 64, 3, 4, 1), nn.ReLU())
            self.head = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.trunk(x).mean((2, 3)))

    own = Own()
    images = torch.randn(2, 3, 16, 24)
    by_part = attach_arm(own, 5, input_size=(16, 24), features=own.trunk)
    by_node = attach_arm(own, 5, input_size=(16, 24), at="trunk.1")
    for model in (by_part, by_node):
        assert isinstance(model, ARMClassifier)
        assert model.arm.input_size == (4, 6)
        assert torch.equal(model.features(images), own.trunk(images))
        assert model(images).shape == (2, 5)
    with pytest.raises(
        ValueError, match="Own is no classifier of timm or torchvision; name the node"
    ):
        attach_arm(own, 5, input_size=16)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_a_network_given_in_eval_mode_trains_and_a_copy_keeps_its_mode(name: str) -> None:
    library = torchvision.models.get_model if name.startswith("torchvision") else timm.create_model
    model = attach_arm(library(name.removeprefix("torchvision/")).eval(), 7, input_size=64)
    assert all(module.training for module in model.modules())
    images = torch.randn(4, 3, 64, 64)
    model(images)
    model.eval()
    twin = copy.deepcopy(model)
    assert not any(module.training for module in twin.modules())
    assert torch.equal(twin(images), model(images))
    assert torch.equal(twin.train()(images), copy.deepcopy(model.train())(images))


class FreezesItsNorm(nn.Module):
    """Does more in `train` than note the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 8, 1)
        self.norm, self.dropout = nn.BatchNorm2d(16), nn.Dropout(0.5)
        self.drops = True

    def train(self, mode: bool = True) -> "FreezesItsNorm":
        super().train(mode)
        self.norm.eval()
        self.drops = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.dropout(x) if self.drops else x


def networks_with_dropout() -> dict[str, dict]:
    own = FreezesItsNorm()
    small = {"growth_rate": 4, "block_config": (2, 2, 2), "num_init_features": 8}
    dense = torchvision.models.DenseNet(**small, drop_rate=0.5)
    return {
        "traced": {"model": dense},
        "cut": {"model": dense, "at": "features.denseblock2.cat"},
        "not traced": {"model": timm.models.DenseNet(4, (2, 2, 2), proj_drop_rate=0.5)},
        "own": {"model": own, "features": own},
    }


@pytest.mark.parametrize("kind", ["traced", "cut", "not traced", "own"])
def test_dropout_stays_on_in_training_and_off_in_eval_mode(kind: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)

    def check(model: nn.Module) -> None:
        assert model.features.training
        for _ in range(2):
            assert not torch.equal(model.features(images), model.features(images))
            assert not torch.equal(model.train().features(images), model.features(images))
            model.eval()
            assert torch.equal(model.features(images), model.features(images))
            model.train()

    model = attach_arm(num_classes=7, input_size=64, **networks_with_dropout()[kind])
    check(model)
    erosion(model, [images])
    check(model)
    batch_invariance(model, images)
    check(model)
    model(images)
    folded = fold_arm(model)
    check(model)
    assert torch.equal(folded(images), folded(images))
    check(folded.train())
    check(copy.deepcopy(model))
    model.eval()
    erosion(model, [images])
    assert torch.equal(model.features(images), model.features(images))


@pytest.mark.parametrize("name", thinned(["alexnet", "vgg11"], 2))
def test_a_pooling_to_a_fixed_size_is_left_out(name: str) -> None:
    given = torchvision.models.get_model(name).eval()
    features = find_features(given).eval()
    for side in (160, 224, 288):
        x = torch.randn(1, 3, side, side)
        assert torch.equal(features(x), given.features(x))
    with pytest.raises(ValueError, match=r"image is 1 x 1; ARM needs at least 2 x 2"):
        attach_arm("torchvision/alexnet", 7, input_size=64)


@pytest.mark.filterwarnings("error")
def test_fewer_features_than_classes_are_warned_of() -> None:
    message = r"out_features = 1 for a 2 x 2 map is less than num_classes = 7; larger images"
    with pytest.warns(UserWarning, match=message) as caught:
        attach_arm("resnet18", 7, input_size=64, arm=PublishedARM)
    assert caught[0].filename == __file__
    attach_arm("resnet18", 9, input_size=96, arm=PublishedARM)


def test_a_traced_network_is_pickled_by_its_state_alone() -> None:
    model = attach_arm("torchvision/resnet18", 7, input_size=64)
    with pytest.raises(TypeError, match="cut by tracing cannot be pickled, .* save its state_dict"):
        pickle.dumps(model)
    other = attach_arm("torchvision/resnet18", 7, input_size=64)
    other.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(other.eval()(images), model.eval()(images))
    whole = pickle.loads(pickle.dumps(attach_arm("resnet18", 7, input_size=64)))
    assert not torch.equal(whole.train().features(images), whole.eval().features(images))


def test_features_are_in_the_mode_of_their_network() -> None:
    given = timm.create_model("resnet18").eval()
    assert not any(module.training for module in find_features(given).modules())
    given.train().bn1.eval()
    features = find_features(given)
    assert (features.training, features.model.bn1.training) == (True, False)


def test_a_network_of_one_channel_and_of_another_type() -> None:
    given = timm.create_model("resnet18", in_chans=1).double()
    model = attach_arm(given, 7, input_size=64)
    assert model(torch.randn(2, 1, 64, 64, dtype=torch.float64)).dtype == torch.float64


def test_at_cuts_elsewhere() -> None:
    head = partial(ARM, maps=4)
    model = attach_arm("resnet18", 7, input_size=64, at="layer3", dropout=0.5, arm=head)
    assert (model.arm.in_channels, model.arm.input_size, model.arm.maps) == (256, (4, 4), 4)
    assert not any("layer4" in name for name in model.state_dict())
    assert model.dropout.p == 0.5


def test_a_folded_network_runs_in_onnxruntime(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = attach_arm("torchvision/resnet18", 7, input_size=64)
    x, path = torch.randn(2, 3, 64, 64), tmp_path / "model.onnx"
    model(x)
    folded = fold_arm(model)
    torch.onnx.export(folded, (x,), path, dynamo=True, input_names=["x"], verbose=False)
    (got,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), folded(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::UserWarning:torch.ao")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.parametrize("name", thinned(["torchvision/resnet18", "convnext_atto", "resnet18"], 2))
def test_a_folded_network_is_traced_scripted_and_quantized(name: str) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.manual_seed(0)
    model = attach_arm(name, 7, input_size=96)
    x = torch.randn(4, 3, 96, 96)
    model(x)
    folded = fold_arm(model)
    traced, scripted = torch.fx.symbolic_trace(folded), torch.jit.script(folded)
    prepared = prepare_fx(folded, get_default_qconfig_mapping(), (x,))
    with torch.no_grad():
        expected = folded(x)
        assert torch.equal(traced(x), expected)
        assert torch.equal(scripted(x), expected)
        prepared(x)
        quantized = convert_fx(prepared)
        assert any("quantized" in type(module).__module__ for module in quantized.modules())
        # int8 has a resolution of 1/127 of the largest number in each of some twenty layers.
        assert (quantized(x) - expected).norm() < 0.2 * expected.norm()
        larger = torch.randn(4, 3, 128, 128)
        for network in (traced, scripted):
            torch.testing.assert_close(network(larger), folded(larger))


class Theirs(nn.Module):
    """The names and shapes of the authors' network, its ARM for maps of 512 channels only."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
        self.arm = nn.Module()
        self.arm.de_albino = nn.Conv2d(1, 1, 32, 8, bias=False)
        self.arm.bn = nn.BatchNorm2d(2)
        self.arm.alpha = nn.Parameter(torch.tensor([1.5]))
        self.fc = nn.Linear(121, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pixel_shuffle(self.features(x), 16)
        x = self.arm.bn(torch.cat([self.arm.de_albino(x[:, i : i + 1]) for i in range(2)], 1))
        return self.fc((x.mean(1) + self.arm.alpha * x.mean((0, 1))).flatten(1))


@pytest.mark.filterwarnings("ignore:PublishedARM")
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_the_authors_gives_what_their_code_gives(prefix: str) -> None:
    theirs = Theirs()
    images = torch.randn(3, 3, 224, 224)
    theirs(images)  # statistics away from their initial values
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    head = partial(PublishedARM, affinity="batch")
    model = attach_arm("torchvision/resnet18", 7, input_size=224, arm=head)
    wrong = model.load_state_dict(from_authors(state), strict=False)
    assert wrong.unexpected_keys == []
    assert wrong.missing_keys == ["arm.running_common"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), theirs.eval()(images))
    with pytest.raises(ValueError, match=r"state: expected a tensor 'arm.de_albino.weight', got"):
        from_authors({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'arm.alpha', got .*; give the state dict itself"):
        from_authors({n: value for n, value in state.items() if not n.endswith("arm.alpha")})


@pytest.mark.parametrize(
    ("message", "model", "options"),
    [
        (r"feature map \(N, C, h, w\) before its pooling, got \(1, 197, 192\)",
         "vit_tiny_patch16_224", {"input_size": 224}),
        (r"before its pooling, got \(1, 196, 512\)", "mixer_s16_224", {"input_size": 224}),
        (r"no feature map .* classifier, which reads \(1, 768\)", "torchvision/vit_b_16",
         {"input_size": 224}),
        (r"'resnet1' is known to neither timm nor torchvision; did you mean", "resnet1", {}),
        (r"image is 1 x 1; ARM needs at least 2 x 2, an image of about 64 x 64", "resnet18",
         {"input_size": 32}),
        (r"the network takes no image \(1, 3, 8, 8\)", "densenet121", {"input_size": 8}),
        (r"about 128 x 128, or an earlier map", "torchvision/resnet18", {"at": "avgpool"}),
        (r"dropout: expected a number from 0 to 1, got '0.1'", "resnet18", {"dropout": "0.1"}),
        (r"num_classes: expected a whole number of at least 1, got 0", "resnet18",
         {"num_classes": 0}),
        (r"num_classes: expected a whole number of at least 1, got '7'", "resnet18",
         {"num_classes": "7"}),
        (r"input_size: expected a whole number or \(H, W\), got '64'", "resnet18",
         {"input_size": "64"}),
        (r"model: cannot be cut at 'layer9': .*as features=", "resnet18", {"at": "layer9"}),
        (r"features, at: give one of the two", "resnet18", {"at": "layer3", "features": nn.ReLU()}),
        (r"maps: expected a whole number", "resnet18", {"arm": partial(ARM, maps=0)}),
    ],
)  # fmt: skip
def test_wrong_input_is_named(message: str, model: str, options: dict) -> None:
    with pytest.raises(ValueError, match=message):
        attach_arm(model, **({"num_classes": 7, "input_size": 64} | options))


def test_arguments_that_contradict_each_other_are_named() -> None:
    cnn = nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match="pretrained: model has to be the name"):
        attach_arm(cnn, 7, input_size=64, features=cnn, pretrained=True)
    with pytest.raises(ValueError, match="features: expected a part of model"):
        attach_arm(nn.Conv2d(3, 4, 3), 7, input_size=64, features=cnn)
    with pytest.raises(TypeError, match="arm: expected what makes a module .*, got 'published'"):
        attach_arm(cnn, 7, input_size=64, features=cnn, arm="published")
    with pytest.raises(TypeError, match="arm: expected what makes a module .*, got ARM"):
        attach_arm(cnn, 7, input_size=64, features=cnn, arm=ARM(4, 62))
    with pytest.raises(TypeError, match="arm: expected a module with out_features, got Flatten"):
        attach_arm(cnn, 7, input_size=64, features=cnn, arm=lambda *_: nn.Flatten())
    with pytest.raises(TypeError, match=r"arm: cannot be called with C and \(H, W\)"):
        attach_arm(cnn, 7, input_size=64, features=cnn, arm=nn.AdaptiveAvgPool2d)


def test_a_network_inside_another_module_is_named() -> None:
    cnn = timm.create_model("resnet18")
    attached = attach_arm(cnn, 7, input_size=64)
    for model, hint in (
        (attached, "features=model.features"),
        (nn.DataParallel(cnn), "give model.module"),
        (torch.compile(cnn), "before torch.compile"),
    ):
        with pytest.raises(ValueError, match=f"model: is a {type(model).__name__}; .*{hint}"):
            attach_arm(model, 7, input_size=64)


def test_wrong_types_are_named() -> None:
    with pytest.raises(TypeError, match="features: expected an nn.Module, got str"):
        attach_arm("resnet18", 7, input_size=64, features="layer4")
    with pytest.raises(TypeError, match="at: expected the name of a graph node, got ReLU"):
        attach_arm("resnet18", 7, input_size=64, at=nn.ReLU())
    with pytest.raises(TypeError, match="model: expected an nn.Module, got int"):
        find_features(3)
    with pytest.raises(TypeError, match="model: expected an nn.Module, got str"):
        fold_arm("resnet18")
    with pytest.raises(ValueError, match=r"before its pooling, got \(1, 197, 192\)"):
        find_features(timm.create_model("vit_tiny_patch16_224"))


def test_names_need_a_library_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from unmuddle.arm import features

    monkeypatch.setattr(features, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs timm or torchvision, and neither is installed"):
        attach_arm("resnet18", 7, input_size=64)
    with pytest.raises(ValueError, match="at: needs torchvision"):
        attach_arm(nn.Conv2d(3, 4, 3), 7, input_size=64, at="0")


def test_embeddings_are_what_the_classifier_reads() -> None:
    cnn = nn.Conv2d(3, 16, 3, 8, 1)
    model = attach_arm(cnn, 7, input_size=32, features=cnn)
    images = torch.randn(4, 3, 32, 32)
    model(images)
    model.eval()
    assert isinstance(model.arm, ARM)
    assert torch.equal(model(images), model.classifier(model.embed(images)))
