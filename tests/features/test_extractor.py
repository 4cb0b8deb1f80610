from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from anomalib_med.errors import ConfigError
from anomalib_med.features import FeatureCache, FeatureExtractor, backbones
from anomalib_med.features.cache import FirstFeatures
from anomalib_med.features.fusion import fuse_batch_norms

X = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def random_resnet(**settings: object) -> FeatureExtractor:
    return FeatureExtractor("resnet18", **({"weights": "random"} | settings))


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(("layer4", "fc")) and not k.endswith("tracked")}
    path = tmp_path_factory.mktemp("weights") / "resnet18_trunk.safetensors"
    save_file(state, path)
    return path


def test_default_layers_are_those_at_strides_8_and_16() -> None:
    extractor = random_resnet()
    assert extractor.backbone.layers == ("layer2", "layer3")
    assert extractor(X).shape == (3, 128 + 256, 8, 8)
    assert extractor(X).dtype == torch.float16


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("vit_tiny_patch16_224", ("blocks.6", "blocks.9")),
        ("efficientnet_lite0", ("blocks.2", "blocks.4")),
        ("convnext_atto", ("stages.1", "stages.2")),
    ],
)
def test_other_families_of_backbones(backbone: str, layers: tuple[str, ...]) -> None:
    extractor = FeatureExtractor(backbone, weights="random")
    assert extractor.backbone.layers == layers
    features = extractor(torch.rand(1, 1, 96, 64))
    assert features.shape[1] == extractor.channels
    assert torch.isfinite(features).all()


def test_features_equal_those_of_the_whole_network_by_hand(weight_file: Path) -> None:
    network = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(2,)).eval()
    network.load_state_dict(backbones.read_weights(weight_file), strict=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        expected = network((X.expand(-1, 3, -1, -1) - mean) / std)[0]
    found = FeatureExtractor("resnet18", weights=str(weight_file), layers=("layer2",), neighbourhood=1)(X)
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_wee_patch16_reg1_gap_256"])
def test_patch_tokens_of_a_transformer_lie_on_their_grid(name: str, tmp_path: Path) -> None:
    """Of any shape of input, without class and register tokens, and with the final norm after the last block."""
    torch.manual_seed(3)
    network = timm.create_model(name, pretrained=False, dynamic_img_size=True).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    last = f"blocks.{len(network.blocks) - 1}"
    extractor = FeatureExtractor(name, weights=str(tmp_path / "vit.safetensors"), layers=(last,), neighbourhood=1)
    assert extractor.multiple == 16
    x = torch.rand(1, 1, 96, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (extractor.backbone.mean, extractor.backbone.std))
    with torch.inference_mode():
        tokens = network.forward_features((x.expand(-1, 3, -1, -1) - mean) / std)[:, network.num_prefix_tokens :]
    found = extractor(x)
    assert found.shape == (1, network.embed_dim, 6, 4)
    torch.testing.assert_close(found[0].flatten(1).T.float(), tokens[0], rtol=2e-3, atol=2e-3)


def test_inner_blocks_of_a_transformer_are_given_as_they_are() -> None:
    extractor = FeatureExtractor("vit_tiny_patch16_224", weights="random", layers=("blocks.3", "blocks.5"))
    assert extractor.channels == 2 * 192
    assert not extractor.backbone.norm
    again = FeatureExtractor("vit_tiny_patch16_224", layers=("blocks.3", "blocks.5"), state=extractor.state())
    assert torch.equal(again(X), extractor(X))


def test_each_image_is_computed_alike_in_any_batch() -> None:
    extractor = random_resnet()
    assert torch.equal(extractor(X), torch.cat([extractor(x[None]) for x in X]))


def test_many_images_at_once_are_computed_as_a_few_are() -> None:
    extractor, x = FeatureExtractor(), torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extractor(x), torch.cat([extractor(part) for part in x.split(3)]))


def test_one_channel_and_the_same_thing_three_times_are_equal() -> None:
    extractor = random_resnet()
    assert torch.equal(extractor(X), extractor(X.expand(-1, 3, -1, -1)))
    with pytest.raises(ConfigError, match="1 or 3 channels, got 2"):
        extractor(X.expand(-1, 2, -1, -1))


def test_random_weights_come_from_the_seed() -> None:
    assert random_resnet(seed=1).weight_hash == random_resnet(seed=1).weight_hash
    assert random_resnet(seed=1).weight_hash != random_resnet(seed=2).weight_hash


def test_state_restores_the_same_features() -> None:
    extractor = random_resnet(seed=4)
    again = random_resnet(state={k: v.float() for k, v in extractor.state().items()})
    assert again.key() == extractor.key()
    assert torch.equal(again(X), extractor(X))


def test_a_file_that_lacks_the_later_layers_is_enough(weight_file: Path) -> None:
    assert FeatureExtractor("resnet18", weights=str(weight_file)).backbone.source == "resnet18_trunk.safetensors"
    with pytest.raises(ConfigError, match=r"30 of 122 tensors are absent, first layer4.0.conv1.weight|layer4"):
        FeatureExtractor("resnet18", weights=str(weight_file), layers=("layer4",))


def test_a_file_for_another_network_is_refused_with_the_first_keys(weight_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"do not fit the backbone.*first layer1\.2\.conv1\.weight"):
        FeatureExtractor("resnet34", weights=str(weight_file))


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(weight_file: Path, tmp_path: Path) -> None:
    state = backbones.read_weights(weight_file)
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"layer1\.0\.conv1\.weight is \(64, 64, 1, 1\), needed \(64, 64, 3, 3\)"):
        FeatureExtractor("resnet18", weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"not tensors", "not a readable safetensors file")]
)
def test_a_bad_weight_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        FeatureExtractor("resnet18", weights=str(path))


def test_unknown_network_and_layer_are_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match='"resnet19" is neither radlite nor a timm network: did you mean'):
        FeatureExtractor("resnet19", weights="random")
    with pytest.raises(ConfigError, match='no layer "layer9": it has act1, layer1'):
        random_resnet(layers=("layer9",))


def test_without_hub_random_weights_come_with_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.warns(UserWarning, match="random weights"):
        extractor = FeatureExtractor("resnet18", weights="pretrained")
    assert extractor.backbone.source == "random"


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "regnety_002"])
def test_folding_batch_norms_changes_nothing_but_rounding(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = network.forward_features(x)
        folded = fuse_batch_norms(network, x)
        after = network.forward_features(x)
    assert folded >= 15
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4)


def test_cached_features_are_the_computed_ones(tmp_path: Path) -> None:
    extractor = random_resnet()
    fresh = extractor(X)
    extractor.cache = FeatureCache(tmp_path)
    assert torch.equal(extractor(X), fresh)
    extractor.layers = None  # type: ignore[assignment,method-assign]  # from here on only the cache can answer
    assert torch.equal(extractor(X), fresh)


def test_cache_knows_extractor_and_content(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    one, other = random_resnet(seed=1), random_resnet(seed=2)
    one.cache = cache
    other.cache = cache
    assert not torch.equal(one(X), other(X))
    assert not torch.equal(one(X), one(X.flip(3)))
    assert len(list(tmp_path.rglob("*.npy"))) == 9


def test_scales_are_joined_cell_by_cell_on_the_grid_of_the_first() -> None:
    whole, joined = random_resnet(), random_resnet(scales=(1.0, 0.5))
    half = F.interpolate(X, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    expected = F.interpolate(whole(half).float(), size=(8, 8), mode="bilinear", align_corners=False).half()
    assert joined.channels == 2 * whole.channels == sum(joined.widths)
    assert torch.equal(joined(X), torch.cat([whole(X), expected], 1))
    assert torch.equal(joined(X), joined.extract(X))
    assert random_resnet(scales=(0.5, 1.0))(X).shape == (3, joined.channels, 4, 4)


def test_sides_at_a_scale_are_multiples_that_the_network_takes() -> None:
    extractor = random_resnet(scales=(0.4,))
    seen = F.interpolate(X, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)  # 25.6 is no multiple
    assert torch.equal(extractor(X), random_resnet()(seen))
    assert random_resnet(scales=(0.01,))(X).shape[2:] == (2, 2)


def test_at_several_scales_each_image_is_computed_alike_in_any_batch() -> None:
    extractor = random_resnet(scales=(1.0, 0.5, 1.5))
    assert torch.equal(extractor(X), torch.cat([extractor(x[None]) for x in X]))


def test_the_cache_keeps_each_scale_once_whoever_asks(tmp_path: Path) -> None:
    both, whole = random_resnet(scales=(1.0, 0.5)), random_resnet()
    fresh = both(X)
    both.cache = FeatureCache(tmp_path)
    whole.cache = FeatureCache(tmp_path)
    whole(X)
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    assert torch.equal(both(X), fresh)
    assert len(list(tmp_path.rglob("*.npy"))) == 6
    both.layers = None  # type: ignore[assignment,method-assign]  # from here on only the cache can answer
    assert torch.equal(both(X), fresh)


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    extractor = random_resnet()
    extractor.cache = FeatureCache(tmp_path)
    fresh = extractor(X)
    for path in tmp_path.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(extractor(X), fresh)
    assert all(np.load(path).shape == fresh.shape[1:] for path in tmp_path.rglob("*.npy"))


def test_the_first_features_are_kept_while_there_is_room() -> None:
    extractor = random_resnet()
    fresh = extractor(X)
    cache = FirstFeatures(2.5 * fresh[0].nbytes / 2**20)
    with extractor.keeping(cache):
        assert torch.equal(extractor(X), fresh)
        kept = [cache.get(cache.path(extractor.key(), image)) for image in X]
        assert [features is not None for features in kept] == [True, True, False]
        assert torch.equal(extractor(X), fresh)
    assert extractor.cache is None
