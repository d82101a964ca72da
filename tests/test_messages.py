"""The messages of server and client: those of openpi's client, and none that makes the reader do anything else."""

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpi_client import msgpack_numpy

from jaxreflow.errors import ServeError
from jaxreflow.serve.messages import check_installed, pack, unpack

MESSAGE = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2],
    "state": np.linspace(0, 1, 5, dtype=np.float32),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3)),
    "half": np.array(1.5, np.float16),
    "scalar": np.int16(-3),
    "flag": np.bool_(True),
    "task": "push the Würfel",
    "nested": {"list": [1, 2.5, None, False, [b"bytes"]]},
}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, np.ndarray | np.generic):
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
            np.testing.assert_array_equal(found[key], value)
        else:
            assert found[key] == value, key


def test_both_sides_understand_openpis_client():
    assert_equal(unpack(msgpack_numpy.packb(MESSAGE)), MESSAGE)
    assert_equal(msgpack_numpy.unpackb(pack(MESSAGE)), MESSAGE)
    assert pack(MESSAGE) == msgpack_numpy.packb(MESSAGE)


def test_numbers_of_other_machines_are_turned_round():
    found = unpack(pack(np.array([1, 2], ">i4")))
    assert (found.dtype.str, found.tolist()) == ("<i4", [1, 2])


def array(**changes: object) -> bytes:
    fields = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]} | changes
    return msgpack.packb({key.encode(): value for key, value in fields.items()})


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (array(dtype="|O"), "`dtype`.*'|O'"),
        (array(dtype="O"), "`dtype`.*'O'"),
        (array(dtype="i4,O"), "`dtype`.*'i4,O'"),
        (array(dtype="(2,)f4"), "`dtype`"),
        (array(dtype="<f4\n"), "`dtype`"),
        (array(dtype=["<f4"]), "`dtype`.*a list"),
        (array(dtype="|V8"), "`dtype`.*'|V8'"),
        (array(dtype=">f4"), "little-endian.*'>f4'"),
        (array(shape=[3]), r"`data`.*12 bytes.*\[3\].*8 bytes"),
        (array(shape=[1]), r"`data`.*4 bytes.*\[1\].*8 bytes"),
        (array(shape=[-1]), r"`shape`.*\[-1\]"),
        (array(shape=[True, 2]), "`shape`"),
        (array(shape="2"), "`shape`"),
        (array(shape=[2**63]), "`data`.*8 bytes"),
        (array(shape=[0, 2**63], data=b""), "dimension"),
        (array(shape=[2] + 8 * [1]), "`shape`.*at most 8"),
        (array(data="x" * 8), "`data`.*'xxxxxxxx'"),
        (array(data={"a": 8 * b"x"}), "`data`.*a dict"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "300"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "300", b"dtype": "|u1"}), "`data`.*'300'"),
        (b"", "0 bytes"),
        (b"\xc1", "1 bytes"),
        (b"\x01\x02", "extra"),
        (b"\x81\x01\x02", "key"),
        (b"\xd4\x05\x01", "extension type 5"),
        (b"\xa1\xff", "utf-8"),
        (b"\xdd\xff\xff\xff\xff", "4294967295"),
        (b"\x91" * 5000, "5000 bytes"),
        (msgpack.packb([[]] * 4096), "lists and maps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_messages_are_refused(message, error):
    with pytest.raises(ServeError, match=error):
        unpack(message)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_messages_are_read_or_refused(data):
    sound = bytearray(pack(MESSAGE))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del sound[data.draw(st.integers(0, len(sound))) :]
    with contextlib.suppress(ServeError):
        unpack(bytes(sound))


@pytest.mark.parametrize("value", [np.array([None]), np.array(["text"]), np.complex64(1), object(), {1, 2}, 2**70])
def test_only_numbers_and_strings_are_written(value):
    with pytest.raises(ServeError, match=r"cannot be written.*(found|out of range)"):
        pack({"value": value})


def test_missing_packages_are_named(monkeypatch):
    check_installed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServeError, match=r"no msgpack and no websockets.*jaxreflow\[serve\]"):
        check_installed()
