"""Window geometry against the reference implementation's boxes, bins and RoI-Align."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_uhd.model.windows import (
    BIN_CANDIDATES,
    bin_shape,
    bin_weights,
    pool_windows,
    pooling_matrix,
    resize_bins,
    window_edges,
)
from tests.golden import GOLDENS, load, relative_error

BOXES = [name for name in load("windows.npz") if "batch" not in name]


@pytest.mark.parametrize("name", BOXES)
def test_boxes(name):
    height, width = map(int, name.split("_")[-1].split("x"))
    dtype = "bfloat16" if "bf16" in name else "float32"
    (top, bottom), (left, right) = window_edges(height, 12, dtype), window_edges(width, 12, dtype)
    grid = np.meshgrid(np.arange(12), np.arange(12), indexing="ij")
    rows, columns = (index.flatten() for index in grid)
    actual = np.stack([left[columns], top[rows], right[columns], bottom[rows]], axis=1)
    assert np.array_equal(actual, load("windows.npz")[name][:, 1:].numpy())


def test_bins():
    for row in json.loads((GOLDENS / "windows.json").read_text())["rows"]:
        assert list(bin_shape((row["h"], row["w"]))) == row["pooling_hw"]


@pytest.mark.parametrize("size", ["24x24", "19x29", "8x30", "5x50"])
def test_pooling(size):
    golden = load("roi_unfold.npz")
    features = golden[f"feat_{size}"].permute(0, 2, 3, 1)
    pooled = pool_windows(features, 12, bin_shape(features.shape[1:3]))
    assert relative_error(pooled[0], golden[f"unfold_{size}"]) < 1e-6


@settings(deadline=None)
@given(side=st.integers(1, 120), grid=st.integers(1, 16), bins=st.integers(2, 4))
def test_rows_average_within_their_window(side, grid, bins):
    matrix = pooling_matrix(side, grid, bins)
    assert matrix.shape == (grid * bins, side) and matrix.min() >= 0
    sums = matrix.sum(axis=1)
    assert np.all(sums < 1 + 1e-5)
    # Windows of a pixel or more stay on the map, so nothing of them is lost beyond its border.
    if side >= grid:
        np.testing.assert_allclose(sums, 1, atol=1e-5)


def test_a_cached_matrix_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        pool_windows(torch.ones(1, 31, 17, 1), 5, (3, 3))
    features = torch.ones(1, 31, 17, 1, requires_grad=True)
    pool_windows(features, 5, (3, 3)).sum().backward()
    assert features.grad is not None and features.grad.sum() == pytest.approx(5 * 5 * 9, rel=1e-5)


@pytest.mark.parametrize("side", [12, 24, 31, 96])
def test_aligned_windows_read_at_pixel_centers(side):
    """If the value of pixel i is i + 1/2, its center, a bin reads its own center; legacy reads half more."""
    bins, ramp = 3, np.arange(side) + 0.5
    centers = (np.arange(12 * bins) + 0.5) * side / (12 * bins)
    inside = (centers - side / 24 > 0.5) & (centers + side / 24 < side - 1.5)  # samples beyond a border are clamped
    aligned = pooling_matrix(side, 12, bins, aligned=True) @ ramp
    np.testing.assert_allclose(aligned[inside], centers[inside], rtol=1e-5)
    legacy = pooling_matrix(side, 12, bins) @ ramp
    np.testing.assert_allclose(legacy[inside], centers[inside] + 0.5, rtol=1e-5)
    np.testing.assert_allclose(pooling_matrix(side, 12, bins, aligned=True).sum(axis=1), 1, rtol=1e-5)


def test_bin_embeddings_fit_every_shape_of_bins():
    embedding = torch.randn(9, 5)
    assert torch.equal(resize_bins(embedding, (3, 3)), embedding)
    for columns, rows in BIN_CANDIDATES:
        weights = bin_weights((rows, columns))
        assert weights.shape == (rows * columns, 9) and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(rows * columns))
        # The first bin is at the upper left, the last at the lower right, as the pooled bins are.
        assert weights[0].argmax() == 0 and weights[-1].argmax() == 8
