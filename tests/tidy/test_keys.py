"""Every class of keys: all its keys are in one slot, and no two are the same."""

import inspect
from functools import cached_property

import pytest
from redis.crc import key_slot

from engine.stores import keys

CLASSES = [kind for _, kind in inspect.getmembers(keys, inspect.isclass) if kind.__module__ == keys.__name__]


@pytest.mark.parametrize("kind", CLASSES)
def test_all_keys_of_a_class_hash_to_one_slot(kind: type) -> None:
    names = [name for name, value in vars(kind).items() if isinstance(value, cached_property | property)]
    one = kind("5a1e" * 8)
    values = [getattr(one, name) for name in names]
    assert len({key_slot(value.encode()) for value in values}) == 1
    assert len(set(values)) == len(values) > 0
    assert all(value.endswith(f":{name}") for name, value in zip(names, values, strict=True))


@pytest.mark.parametrize("kind", CLASSES)
def test_two_of_a_class_share_no_key(kind: type) -> None:
    names = [name for name, value in vars(kind).items() if isinstance(value, cached_property | property)]
    one, other = kind("5a1e" * 8), kind("0a1e" * 8)
    assert not {getattr(one, name) for name in names} & {getattr(other, name) for name in names}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_key_says_its_type_and_meaning(kind: type) -> None:
    for name, value in vars(kind).items():
        if isinstance(value, cached_property):
            doc = inspect.getdoc(value.func) or ""
            assert doc.startswith(("Hash: ", "Stream: ", "Sorted set: ", "Set: ", "String: ")), name
