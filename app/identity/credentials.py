"""Passwords and opaque secrets: how they are made, hashed and compared."""

import asyncio
import hashlib
import hmac
import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pwdlib import PasswordHash

from app.limits import InFlightLimit

T = TypeVar("T")

ACCESS_PREFIX = "easel_at_"
REFRESH_PREFIX = "easel_rt_"
KEY_PREFIX = "easel_sk_"
INVITATION_PREFIX = "easel_iv_"
RESET_PREFIX = "easel_pr_"
ERASURE_PREFIX = "easel_er_"

_passwords = PasswordHash.recommended()
# Argon2id takes 94 ms and 64 MiB a hash: two at a time bound the memory, and the loop never waits. They leave the
# processor to everything else: on Linux a thread has a priority of its own.
_hashers = ThreadPoolExecutor(2, thread_name_prefix="argon2", initializer=lambda: os.nice(10))
_hashes = InFlightLimit(
    "sign_ins_at_once",
    "process",
    20,
    "Too many people are signing in at this moment: try again in a few seconds.",
    retry_after=2,
)


def new_secret(prefix: str) -> str:
    """A secret of 256 random bits behind a prefix that names its kind."""
    return prefix + secrets.token_urlsafe(32)


def derived(signing_key: str, prefix: str, parent: str) -> str:
    """The secret that belongs to a refresh token or to a row's id: whoever has both gets it again, unstored."""
    digest = hmac.new(signing_key.encode(), f"{prefix}{parent}".encode(), hashlib.sha256).digest()
    return prefix + urlsafe_b64encode(digest).decode().rstrip("=")


def fingerprint(secret: str) -> bytes:
    """SHA-256; enough for secrets of 256 random bits."""
    return hashlib.sha256(secret.encode()).digest()


async def hash_password(password: str) -> str:
    """argon2id with pwdlib's recommended parameters. Raises LimitExceeded."""
    return await _hashing(partial(_passwords.hash, password))


async def verify_password(password: str, stored: str | None) -> bool:
    """False for an unknown user (`stored` None), after the same work as for a known one. Raises LimitExceeded."""
    if stored is None:
        await hash_password(password)
        return False
    return await _hashing(partial(_passwords.verify, password, stored))


async def _hashing(work: Callable[[], T]) -> T:
    with _hashes.acquire():
        return await asyncio.get_running_loop().run_in_executor(_hashers, work)
