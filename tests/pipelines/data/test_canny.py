"""Canny edges: where they must be, and against a slow transcription of the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from segquant_bench.pipelines.data.canny import HIGH, LOW, SIGMA, canny, control_picture


def test_a_step_gives_one_line_where_it_is() -> None:
    grey = np.zeros((20, 24))
    grey[:, 11:] = 1.0
    edges = canny(grey)
    assert edges.sum(axis=1).tolist() == [1] * 20
    assert set(np.argwhere(edges)[:, 1].tolist()) <= {10, 11}
    down = canny(grey.T)
    assert down.sum(axis=0).tolist() == [1] * 20
    assert set(np.argwhere(down)[:, 0].tolist()) <= {10, 11}


def test_flat_and_faint_pictures_have_no_edges() -> None:
    assert not canny(np.full((9, 9), 0.7)).any()
    faint = np.zeros((16, 16))
    faint[:, 8:] = 0.1
    assert not canny(faint).any()


def test_a_circle_is_closed_and_thin() -> None:
    y, x = np.mgrid[:48, :48]
    edges = canny(((y - 24) ** 2 + (x - 24) ** 2 < 15**2).astype(float))
    radius = np.hypot(*(np.argwhere(edges) - 24).T)
    assert np.abs(radius - 15).max() < 1.5
    assert 0.8 * 2 * math.pi * 15 < edges.sum() < 1.4 * 2 * math.pi * 15
    angles = np.sort(np.arctan2(*(np.argwhere(edges) - 24).T))
    assert np.diff(angles).max() < 0.25, "no gap"


def _by_definition(grey: np.ndarray, sigma: float, low: float, high: float) -> np.ndarray:
    """Loops over pixels, neighbours and a flood fill."""
    height, width = grey.shape
    reach = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()

    def at(values: np.ndarray, y: int, x: int) -> float:
        return values[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    def blurred(values: np.ndarray, dy: int, dx: int) -> np.ndarray:
        places = [(y, x) for y in range(height) for x in range(width)]
        sums = [sum(w * at(values, y + k * dy, x + k * dx) for k, w in enumerate(taps, -reach)) for y, x in places]
        return np.array(sums).reshape(height, width)

    smooth = blurred(blurred(grey, 1, 0), 0, 1)
    gradient = np.zeros((height, width, 2))
    for y in range(height):
        for x in range(width):
            for offset, weight in ((-1, 1), (0, 2), (1, 1)):
                gradient[y, x, 0] += weight * (at(smooth, y + 1, x + offset) - at(smooth, y - 1, x + offset)) / 4
                gradient[y, x, 1] += weight * (at(smooth, y + offset, x + 1) - at(smooth, y + offset, x - 1)) / 4
    size = np.hypot(gradient[..., 0], gradient[..., 1])
    thin = np.zeros_like(size)
    for y in range(height):
        for x in range(width):
            angle = math.degrees(math.atan2(*gradient[y, x])) % 180
            dy, dx = [(0, 1), (1, 1), (1, 0), (1, -1)][round(angle / 45) % 4]
            if size[y, x] > at(size, y + dy, x + dx) and size[y, x] >= at(size, y - dy, x - dx):
                thin[y, x] = size[y, x]
    found = thin >= high
    todo = [tuple(place) for place in np.argwhere(found)]
    while todo:
        y, x = todo.pop()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                place = (y + dy, x + dx)
                inside = 0 <= place[0] < height and 0 <= place[1] < width
                if inside and thin[place] >= low and not found[place]:
                    found[place] = True
                    todo.append(place)
    return found


def test_edges_are_those_of_the_definition() -> None:
    draw = np.random.default_rng(0)
    blocks = np.kron(draw.random((5, 6)), np.ones((5, 5))) + 0.05 * draw.random((25, 30))
    edges = canny(blocks)
    assert 30 < edges.sum() < 400
    assert np.array_equal(edges, _by_definition(blocks, SIGMA, LOW, HIGH))


def test_a_control_picture_sees_edges_of_any_channel() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8, 0], picture[:, 8:, 2] = 255, 255  # red beside blue
    edges = np.asarray(control_picture(Image.fromarray(picture)))
    assert edges.shape == (16, 16, 3) and set(np.unique(edges)) == {0, 255}
    assert (edges[..., 0] == edges[..., 2]).all() and edges[8, 6:10].any()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) was given"):
        canny(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="low=0.5 and high=0.2"):
        canny(np.zeros((4, 4)), low=0.5, high=0.2)
