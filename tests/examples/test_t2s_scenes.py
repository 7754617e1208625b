"""T2S-DA's pseudo-target images: every engine, the order of crops, and what no switch may change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.fourier import fourier_style
from examples.common.sampling import generator
from examples.common.scenes.batches import Steps
from examples.common.scenes.task import load_task
from examples.common.scenes.toy import write_street_folder
from examples.t2s_da.config import load_config
from examples.t2s_da.engine import Engine
from examples.t2s_da.grid import load_grid
from examples.t2s_da.scene import SceneMaker, scene_streams
from examples.t2s_da.smoke import MODES, write_styles
from examples.t2s_da.styles import adain, cartoon, color_jitter, gaussian_blur
from examples.t2s_da.translation import Styles, Translator
from examples.t2s_da.weather import KINDS, fog, fractal, snow, weather

SMALL = ["data.crop=[16, 24]", "data.streets=3"]
DRAWN = {"color_jitter": color_jitter, "gaussian_blur": gaussian_blur, "weather": weather, "cartoon": cartoon}
CAMVID = (
    "camvid_table7",
    "camvid_table8",
    "camvid_parts",
    "camvid_main",
    "camvid_numbers",
    "camvid_readings",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_street_folder(folder / "target", size=(24, 32), train=4, test=2)
    write_styles(folder / "styles")
    return folder


def _config(place, *overrides):
    config = load_config("smoke", [*SMALL, *overrides])
    translation = replace(config.translation, styles=str(place / "styles"))
    return replace(config, data=replace(config.data, target=str(place / "target")), translation=translation)


def _batch(config, place, step=0):
    task = load_task(config.data, place / "kept")
    return Steps(scene_streams(config, task, place / "kept"), config.training.seed, 0, 2)[step]


def _picture():
    """Two areas and a gradient, with colour."""
    image = torch.linspace(0.2, 0.7, 48).expand(3, 32, 48).clone()
    image[0, :, 24:] += 0.2
    return image[None]


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_engines_follow_their_generator_alone(name):
    image, engine = _picture(), DRAWN[name]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = [engine(image, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(engine(image, torch.Generator().manual_seed(3)), found[3])
    assert len({tuple(x.flatten().tolist()) for x in found}) > 3
    for x in found:
        assert x.shape == image.shape
        assert 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize(("engine", "share"), [(color_jitter, 0.8), (gaussian_blur, 0.5)])
def test_simclrs_engines_apply_as_often_as_there(engine, share):
    image = _picture()
    changed = [not torch.equal(engine(image, torch.Generator().manual_seed(s)), image) for s in range(100)]
    assert sum(changed) / 100 == pytest.approx(share, abs=0.12)


def test_a_blur_keeps_the_mean_and_smooths_and_jitter_moves_colours():
    image = _picture()
    step = (image[..., 24] - image[..., 23]).abs().max()
    blurred = min(
        (gaussian_blur(image, torch.Generator().manual_seed(s)) for s in range(9)),
        key=lambda x: (x[..., 24] - x[..., 23]).abs().max(),
    )
    assert (blurred[..., 24] - blurred[..., 23]).abs().max() < 0.5 * step
    assert float(blurred.mean()) == pytest.approx(float(image.mean()), abs=0.01)
    means = [color_jitter(image, torch.Generator().manual_seed(s)).mean((0, 2, 3)) for s in range(20)]
    assert max(m.std() for m in torch.stack(means).T) > 0.05


def test_adain_gives_each_colour_the_styles_mean_and_spread():
    torch.manual_seed(0)
    image, style = torch.rand(1, 3, 20, 30), 0.4 + 0.2 * torch.rand(1, 3, 9, 7)
    found = adain(image, style)
    torch.testing.assert_close(found.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3)), style.std((2, 3)))
    torch.testing.assert_close(adain(image, image), image)
    flat = torch.full_like(image, 0.3)
    torch.testing.assert_close(adain(flat, style).mean((2, 3)), style.mean((2, 3)))


def test_cartoons_have_fewer_shades_and_dark_edges():
    image = _picture()
    found = cartoon(image, torch.Generator().manual_seed(0))
    assert len(found[0, 1].unique()) < len(image[0, 1].unique())
    edge, inside = found[..., 23:25].mean(), found[..., 30:40].mean()
    assert edge < inside


def test_weather_is_fog_snow_or_brightness_of_any_strength():
    image = _picture()
    spread = [float(fog(image, s, torch.Generator().manual_seed(0)).std((2, 3)).mean()) for s in (0.0, 1.0)]
    clouds = fractal((32, 48), torch.Generator().manual_seed(0))
    assert (float(clouds.min()), float(clouds.max())) == (0, 1)
    assert spread[0] != spread[1]
    flakes = [
        float((snow(image, s, torch.Generator().manual_seed(0)) > 0.95).float().mean()) for s in (0.0, 1.0)
    ]
    assert 0 <= flakes[0] < flakes[1] < 0.9
    brighter = 0
    for seed in range(60):
        moved = weather(image, torch.Generator().manual_seed(seed)) - image
        inside = moved[:, 1]  # the colour that never comes near 1
        brighter += bool((inside > 0.05).all()) and float(inside.std()) < 1e-6
    assert 0.15 < brighter / 60 < 0.5  # one kind of three moves every pixel alike
    assert len(KINDS) == 3


@pytest.mark.parametrize("size", ["[]", "[20, 28]"])
def test_fda_comes_before_the_last_crop(place, size):
    """Of the whole images, or of crops of the size that is asked for."""
    config = _config(place, f"translation.size={size}")
    batch, scenes = _batch(config, place), SceneMaker(config)
    scene = scenes(batch)
    height, width = (24, 32) if size == "[]" else (20, 28)
    assert batch["source"].image.shape[-2:] == batch["target"].image.shape[-2:] == (height, width)
    assert scene.source.image.shape == scene.styled.shape == scene.target.image.shape == (2, 3, 16, 24)
    whole = fourier_style(batch["source"].image, batch["target"].image, config.translation.beta)
    for i, position in enumerate(batch["source"].positions):
        draws = generator(config.training.seed, position, 3)
        top, left = (int(torch.randint(n + 1, (1,), generator=draws)) for n in (height - 16, width - 24))
        window = (..., slice(top, top + 16), slice(left, left + 24))
        torch.testing.assert_close(scene.styled[i], whole[i][window])
        assert torch.equal(scene.source.image[i], batch["source"].image[i][window])
        assert torch.equal(scene.source.label[i], batch["source"].label[i][window])
    assert not torch.equal(scene.styled, fourier_style(scene.source.image, scene.target.image, 0.05))


def test_fda_on_the_last_crops_has_the_same_crops(place):
    config = _config(place, "translation.before_crop=false")
    scene = SceneMaker(config)(_batch(config, place))
    before = SceneMaker(_config(place))(_batch(config, place))
    assert torch.equal(scene.source.image, before.source.image)
    assert torch.equal(scene.target.image, before.target.image)
    assert not torch.equal(scene.styled, before.styled)
    style = fourier_style(scene.source.image, scene.target.image, config.translation.beta)
    torch.testing.assert_close(scene.styled, style)


def test_images_of_two_sizes_need_a_size_to_restyle_at(place):
    config = _config(place, "data.source_size=[28, 40]")
    with pytest.raises(ValueError, match="crop both to one size"):
        SceneMaker(config)(_batch(config, place))
    sized = _config(place, "data.source_size=[28, 40]", "translation.size=[20, 28]")
    assert SceneMaker(sized)(_batch(sized, place)).styled.shape == (2, 3, 16, 24)


def test_an_images_style_does_not_depend_on_its_batch(place):
    config = _config(place, *MODES["generalization"])
    batch, translate = _batch(config, place), Translator(config)
    both = translate(batch["source"], None, None)
    for i in range(2):
        assert torch.equal(translate(batch["source"][i : i + 1], None, None), both[i : i + 1])
    assert (both - batch["source"].image).abs().flatten(1).max(1).values.min() > 1e-3


def test_styles_come_from_a_folder_without_a_target_and_its_lack_is_told(place, tmp_path):
    draws = torch.Generator().manual_seed(0)
    styles = Styles(place / "styles")
    drawn = [styles.draw(draws, torch.zeros(1, 3, 5, 7)) for _ in range(30)]
    assert {tuple(x[0, :, 2, 3].mul(255).round().int().tolist()) for x in drawn} == {
        (90, 60, 120),
        (210, 160, 90),
        (40, 110, 150),
    }
    config = _config(place, *MODES["generalization"])
    with pytest.raises(ValueError, match="--styles FOLDER"):
        Translator(replace(config, translation=replace(config.translation, styles="")))
    with pytest.raises(FileNotFoundError, match="has no picture"):
        Translator(replace(config, translation=replace(config.translation, styles=str(tmp_path))))
    unused = replace(config.translation, styles="", engines=("weather", "cartoon"))
    Translator(replace(config, translation=unused))


def test_what_a_trained_network_made_is_cut_and_mirrored_as_its_image(place, tmp_path):
    overrides = ['translation.engines=["translated"]']
    config = _config(place, *overrides)
    with pytest.raises(ValueError, match=r"name the folder in translation\.translated"):
        _batch(config, place)
    config = replace(config, translation=replace(config.translation, translated=str(tmp_path)))
    task = load_task(config.data, place / "kept")
    with pytest.raises(FileNotFoundError, match=r"street_00000\d\.png"):
        _batch(config, place)
    for i, name in enumerate(task.source.names):
        pixels = (255 - task.source.image(i) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    for step in range(2):
        scene = SceneMaker(config)(_batch(config, place, step))
        torch.testing.assert_close(scene.styled, 1 - scene.source.image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", CAMVID)
def test_rows_of_a_grid_see_the_same_images_and_start_from_the_same_weights(place, grid):
    """Bit for bit, wherever both have a part: crops, order, labels, mixtures, initial weights."""

    def start(overrides):
        config = _config(place, *overrides)
        task = load_task(config.data, place / "kept")
        streams = scene_streams(config, task, place / "kept")
        engine = Engine(config, task.classes, torch.device("cpu"))
        weights = engine.student.state_dict()
        scenes = [engine.scene(Steps(streams, config.training.seed, 0, 2)[step]) for step in range(2)]
        engine.teacher.eval()
        mixed = None
        if config.components.self_training:
            mixed = engine.mix(scenes[0], engine.judge(scenes[0].target.image))
        return weights, scenes, mixed

    rows = load_grid(grid).rows
    weights, scenes, mixed = start(rows[0][1])
    for label, overrides in rows[1:]:
        own_weights, own_scenes, own_mixed = start(overrides)
        for key in weights.keys() & own_weights.keys():
            if not (key.startswith("project.") and "model.projector" in "".join(overrides)):
                assert torch.equal(weights[key], own_weights[key]), (label, key)
        for one, other in zip(scenes, own_scenes, strict=True):
            assert one.source.names == other.source.names
            assert torch.equal(one.source.image, other.source.image), label
            assert torch.equal(one.source.label, other.source.label), label
            if other.target is not None:
                assert torch.equal(one.target.image, other.target.image), label
        if own_mixed is not None:
            assert torch.equal(mixed.image, own_mixed.image), label
            assert torch.equal(mixed.label, own_mixed.label), label


def test_a_pull_loss_without_weight_trains_as_none_does(place):
    """Its draws move no other: dropout, stochastic depth, mixtures and views are the same in every step."""
    runs = []
    for override in ("pull.weight=0.0", "components.pull=false"):
        network = ('model.vision="segformer-tiny"', "data.crop=[32, 48]", "model.dropout=0.5")
        config = _config(place, *network, override)
        task = load_task(config.data, place / "kept")
        steps = Steps(scene_streams(config, task, place / "kept"), config.training.seed, 0, 3)
        engine = Engine(config, task.classes, torch.device("cpu"))
        logged = [engine.advance(steps[i]) for i in range(3)]
        runs.append(
            [[float(row[name]) for name in ("loss", "source", "target", "confident")] for row in logged]
        )
    assert runs[0] == runs[1]
