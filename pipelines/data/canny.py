"""Canny edges: the control pictures of a ControlNet."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

SIGMA = 1.0
LOW, HIGH = 0.08, 0.2


def canny(grey: np.ndarray, sigma: float = SIGMA, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """Edges one pixel wide (Canny 1986).

    Args:
        grey: float [h, w] in 0 … 1.
        sigma: of the Gaussian, in pixels.
        low, high: thresholds on the gradient, where an ideal step from 0 to 1 has 1 before smoothing; weak edges
            count where they touch strong ones, diagonals included.

    Returns:
        bool [h, w].

    Raises:
        ValueError: another shape, or thresholds out of order.
    """
    if grey.ndim != 2:
        raise ValueError(f"canny takes a grey picture [h, w], and {grey.shape} was given; average its channels first")
    if not 0 < low <= high:
        raise ValueError(f"thresholds low={low} and high={high} were given; they must be positive and in that order")
    smooth = ndimage.gaussian_filter(grey.astype(np.float64), sigma, mode="nearest")
    down, right = (ndimage.sobel(smooth, axis, mode="nearest") / 4 for axis in (0, 1))
    magnitude = np.hypot(down, right)
    thin = np.where(_is_ridge(magnitude, down, right), magnitude, 0.0)
    labels, count = ndimage.label(thin >= low, structure=np.ones((3, 3)))
    strong = np.zeros(count + 1, dtype=bool)
    strong[labels[thin >= high]] = True
    strong[0] = False
    edges: np.ndarray = strong[labels]
    return edges


def _is_ridge(magnitude: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Non-maximum suppression at directions rounded to 45 degrees; one neighbour must be strictly smaller."""
    sector = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(magnitude, 1, mode="edge")
    height, width = magnitude.shape
    ridge = np.zeros(magnitude.shape, dtype=bool)
    for index, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        ridge |= (sector == index) & (magnitude > ahead) & (magnitude >= behind)
    return ridge


def control_picture(picture: Image.Image) -> Image.Image:
    """White edges on black, RGB, of the picture's size."""
    channels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    edges = np.any([canny(channels[..., index]) for index in range(3)], axis=0)
    return Image.fromarray(np.repeat(edges[..., None], 3, axis=2).astype(np.uint8) * 255)
