"""Rounding to 16 bits, compared with an integer definition and with Python's `struct`."""

import struct
import sys
from unittest.mock import patch

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.rma.wire_codec import WireCodec


def _values():
    """Return float32 numbers of all magnitudes, including ties between 16-bit neighbours."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    bits[:50_000] = bits[:50_000] & 0xFFFF0000 | 0x8000  # halfway between two bfloat16
    bits[50_000:100_000] = bits[50_000:100_000] & 0xFFFFE000 | 0x1000  # halfway between two float16
    values = bits.view(np.float32)
    return np.append(values[np.isfinite(values)], np.float32([0.0, -0.0, 65504, 65519.9, 65520, -7e4, 3.4e38, -3.4e38]))


def _encoded(name, values):
    wire = WireCodec(name)
    out = np.empty(values.shape, wire.dtype)
    wire.encode(values, out)
    return out


def test_bfloat16_rounds_to_nearest_ties_to_even():
    values = _values()
    bits = values.view(np.uint32).astype(np.uint64)
    upper, lower = bits >> 16, bits & 0xFFFF
    nearest = upper + ((lower > 0x8000) | ((lower == 0x8000) & (upper & 1 == 1)))
    largest = np.where(nearest & 0x7FFF == 0x7F80, nearest - 1, nearest)  # infinity becomes the largest number
    np.testing.assert_array_equal(_encoded("bfloat16", values).view(np.uint16), largest)


def test_float16_rounds_to_nearest_ties_to_even():
    values = _values()
    clipped = [max(-65504.0, min(65504.0, float(value))) for value in values]
    expected = np.frombuffer(struct.pack(f"{len(clipped)}e", *clipped), np.uint16)
    np.testing.assert_array_equal(_encoded("float16", values).view(np.uint16), expected)


@pytest.mark.parametrize(("name", "relative", "smallest"), [("bfloat16", 2**-8, 2e-38), ("float16", 2**-11, 6.2e-5)])
def test_the_error_is_within_the_documented_bound(name, relative, smallest):
    values = _values()
    largest = float(np.nextafter(np.float32(65504 if name == "float16" else 3.3895e38), np.float32(0)))
    values = values[(abs(values) >= smallest) & (abs(values) <= largest)]
    error = abs(_encoded(name, values).astype(np.float64) - values)
    assert (error <= relative * abs(values.astype(np.float64))).all()
    assert error.max() > 0


def test_float16_below_its_normal_range_errs_by_at_most_3e_8():
    values = np.random.default_rng(1).uniform(-6.2e-5, 6.2e-5, 10_000).astype(np.float32)
    assert abs(_encoded("float16", values).astype(np.float64) - values).max() <= 2**-25


def test_rounding_errors_are_exact_in_float32():
    # So a float32 residual stores them completely.
    values = np.random.default_rng(2).standard_normal(100_000).astype(np.float32)
    for name in ("bfloat16", "float16"):
        sent = _encoded(name, values)
        error = values - sent.astype(np.float32)
        np.testing.assert_array_equal(sent.astype(np.float64) + error, values.astype(np.float64))


def test_refuses_unknown_names():
    with pytest.raises(InputError, match="wire_dtype: expected bfloat16 or float16 for half the bytes, found int8"):
        WireCodec("int8")


def test_bfloat16_names_its_missing_package():
    with patch.dict(sys.modules, {"ml_dtypes": None}):
        with pytest.raises(InputError, match="expected the package ml_dtypes"):
            WireCodec("bfloat16")
        WireCodec("float16")
