"""Digests without OpenSSL are those that hashlib makes: names of what lies on disks depend on them."""

from __future__ import annotations

import hashlib

import pytest

from bufferzone.digest import sha256


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5000])
def test_it_is_the_digest_of_hashlib(data):
    whole = sha256()
    for offset in range(0, len(data), 777):
        whole.update(data[offset : offset + 777])
    assert whole.hexdigest() == sha256(data).hexdigest() == hashlib.sha256(data).hexdigest()
