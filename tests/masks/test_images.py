"""Pictures of masks: what they show, exactly, and what notebooks get to see."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert.masks import drawing
from sparsebert.masks import images as mask_images

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import image as images  # noqa: E402
from matplotlib import pyplot  # noqa: E402

from sparsebert.reporting.figures import new_figure  # noqa: E402
from tests.pictures import pictures_of  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def random_mask(*shape, p=0.3):
    generator = torch.Generator().manual_seed(3)
    return sb.AttentionMask.from_dense(torch.rand(shape, generator=generator) < p)


# ------------------------------------------------------------------------ cells


@pytest.mark.parametrize("chunk", [1, 100, 1 << 21])
@pytest.mark.parametrize(("n", "m", "step"), [(12, 12, 3), (13, 17, 4), (5, 40, 7), (9, 9, 1)])
def test_shares_are_means_of_equal_cells(monkeypatch, n, m, step, chunk):
    monkeypatch.setattr(mask_images, "CHUNK", chunk)
    mask = random_mask(n, m)
    dense = mask.dense()[0, 0].double()
    expected = [
        [dense[i : i + step, j : j + step].mean().item() for j in range(0, m, step)]
        for i in range(0, n, step)
    ]
    found = mask_images.shares(mask.bits[0, 0], m, step)
    assert np.allclose(found, expected, rtol=0, atol=1e-6)


def test_images_have_at_most_the_asked_cells():
    for n, m in ((1, 1), (255, 256), (257, 100), (1000, 3), (5000, 5000)):
        step = mask_images.step_for(n, m, 256)
        assert math.ceil(max(n, m) / step) <= 256
        assert step == 1 or math.ceil(max(n, m) / (step - 1)) > 256


def test_png_holds_the_image():
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    read = images.imread(io.BytesIO(mask_images.png(image)))
    assert np.array_equal(np.round(255 * read).astype(np.uint8), image)


def test_the_image_of_a_mask():
    image = mask_images.mask_image(random_mask(6, 6, p=1.1).bits[0, 0], 6, 256)
    assert (image == [8, 81, 156]).all()
    star = mask_images.mask_image(sb.patterns.star(1000).bits[0, 0], 1000, 250)
    assert star.shape == (250, 250, 3)
    assert (star[0, :, 0] < 140).all() and (star[:, 0, 0] < 140).all()  # a line in four is seen
    assert (star.diagonal()[0] < 140).all() and (star[2, 5:] == 255).all()


# ------------------------------------------------------------------------ figures


@pytest.mark.parametrize(("n", "block"), [(512, 32), (500, 25), (777, 37), (2000, 100)])
@pytest.mark.parametrize("panels", [1, 4])
def test_equal_lines_look_equal(n, block, panels):
    """Sampled pictures drew some of the columns of `fixed` twice as wide as others."""
    heads = dict.fromkeys("abcd"[:panels], sb.patterns.fixed(n, block=block))
    figure = new_figure(*drawing.panels_size(heads))
    drawing.draw_panels(figure, heads)
    figure.set_dpi(150)
    figure.canvas.draw()
    red = np.asarray(figure.canvas.buffer_rgba())[::-1, :, 0].astype(int)  # from the bottom up
    axis = figure.axes[-1]
    inks = []
    for column in range(block - 1, n - 2 * block, block):
        x, y = axis.transData.transform((column, n - 1 - block / 2)).round().astype(int)
        around = red[y, x - 4 : x + 5]
        inks.append((around.max() - around).sum())
    assert len(inks) > 10 and min(inks) > 20
    assert max(inks) <= 1.15 * min(inks), inks


def test_axes_count_positions():
    axis = sb.patterns.star(512).plot()
    assert list(axis.get_xticks()) == list(axis.get_yticks()) == [0, 511]
    left, right, bottom, top = axis.get_images()[0].get_extent()
    assert (left, right, bottom, top) == (-0.5, 511.5, 511.5, -0.5)
    long = sb.patterns.star(4000).plot()
    assert list(long.get_xticks()) == [0, 3999]
    assert long.get_images()[0].get_extent()[1] >= 3999.5
    one = sb.patterns.dense(1).plot()
    assert list(one.get_xticks()) == [0]


def test_plot_draws_the_mask():
    mask = random_mask(1, 2, 9, 7)
    for head in (0, 1, -1):
        axis = mask.plot(head=head)
        drawn = axis.get_images()[0].get_array()
        step = drawn.shape[0] // 9
        assert np.array_equal(drawn[::step, ::step] == 1, mask.head(head).dense()[0, 0].numpy())


def test_plot_of_several_heads_is_a_figure():
    mask = random_mask(2, 3, 9, 9)
    figure = mask.plot()
    assert [bool(axis.get_images()) for axis in figure.axes] == [True] * 6
    assert figure.axes[0].get_title().startswith("layer 0, head 0\n")
    assert len(mask.plot(layer=1).axes) == 4  # three heads, and an empty place
    axis = mask.plot(layer=1, head=2)
    assert axis.figure is not figure and len(axis.figure.axes) == 1
    mine = pyplot.subplots()[1]
    assert mask.plot(layer=0, head=0, ax=mine) is mine and mine.get_images()
    same = sb.AttentionMask.stack_heads([sb.patterns.star(8)] * 3)
    assert same.plot(ax=mine) is mine
    many = sb.patterns.random(16, num_heads=60)
    assert "the first 48 of 60" in many.plot()._suptitle.get_text()


def test_plot_refuses():
    mask = random_mask(2, 3, 9, 9)
    with pytest.raises(ValueError, match="6 different ones; choose with layer= and head="):
        mask.plot(ax=pyplot.subplots()[1])
    with pytest.raises(IndexError, match="layer: index 2"):
        mask.plot(layer=2)
    with pytest.raises(IndexError, match="head: index 3"):
        mask.plot(head=3)


def test_without_matplotlib_notebooks_have_pictures_and_plot_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = None
import sparsebert as sb
mask = sb.patterns.star(64)
plan = sb.compile_plan(mask, target="cpu")
for shown in (mask, plan, plan.explain()):
    assert "data:image/png;base64," in shown._repr_html_()
try:
    mask.plot()
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "plot: pictures need matplotlib: pip install 'sparsebert[plot]'\n"


# ------------------------------------------------------------------------ notebooks


def test_a_mask_shows_its_heads():
    mask = random_mask(1, 3, 40, 30)
    text = mask._repr_html_()
    assert "3 heads, 40 x 30" in text
    for head, picture in enumerate(pictures_of(text)):
        assert np.array_equal(picture[..., 0] < 0.5, mask.head(head).dense()[0, 0].numpy())
    assert len(pictures_of(text)) == 3
    many = sb.patterns.random(64, num_heads=40)._repr_html_()
    assert len(pictures_of(many)) == 12 and "the first 12 of 40 different heads" in many
    assert len(sb.patterns.longformer(4096)._repr_html_()) < 20_000


def test_html_escapes_what_others_wrote():
    evil = "<img src=x onerror='alert(1)'>"
    mask = sb.AttentionMask.from_dense(
        torch.eye(4, dtype=torch.bool), provenance={"pattern": evil, "model": evil}
    )
    for shown in (mask, sb.compile_plan(mask, target="cpu")):
        assert "<img src=x" not in shown._repr_html_()
    assert "&lt;img src=x" in mask._repr_html_()


# ------------------------------------------------------------------------ NumPy


def test_numpy_makes_the_dense_array_of_a_mask():
    mask = random_mask(2, 3, 5, 11)
    array = np.asarray(mask)
    assert array.dtype == np.bool_ and np.array_equal(array, mask.dense().numpy())
    assert np.array(mask, dtype=np.float32).dtype == np.float32
    assert np.asarray(mask, dtype="int8").sum() == mask.dense().sum()
    array[:] = False  # a copy
    assert mask.density > 0
    assert np.array(mask, copy=True).shape == (2, 3, 5, 11)
    with pytest.raises(ValueError, match="copy"):
        np.array(mask, copy=False)
