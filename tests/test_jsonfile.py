"""JSON from strangers: everything that is no plain document is a ValueError, which the readers turn into their own."""

import pytest

from jaxreflow.support.strict_json import parse_json


def test_documents_are_read():
    assert parse_json('{"a": [1, {"b": null}], "c": "x"}') == {"a": [1, {"b": None}], "c": "x"}
    assert parse_json(b"[[]]") == [[]]
    assert parse_json("[" * 64 + "]" * 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        (b"\xff\xff\xff", "decode"),
        ('{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "'c' occurs twice"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "nested more than 64 deep"),
        ("1" * 10_000, "4300"),
    ],
    ids=["damaged", "binary", "twice", "deep", "very deep", "long number"],
)
def test_others_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
