"""What lies in a Redis."""

from typing import Any, cast

import redis


def everything_in(url: str) -> list[tuple[str, bytes]]:
    """Every key's content, each element as its bytes; a key that expires meanwhile has none."""
    # redis-py's answers have no types of their own.
    with cast(Any, redis.Redis).from_url(url) as client:
        return [(name.decode(), value) for name in client.scan_iter() for value in _values(client, name)]


def _values(client: Any, name: bytes) -> list[bytes]:
    kind = client.type(name)
    if kind == b"stream":
        return [part for _, fields in client.xrange(name) for pair in fields.items() for part in pair]
    if kind == b"hash":
        return [part for pair in client.hgetall(name).items() for part in pair]
    if kind == b"zset":
        return list(client.zrange(name, 0, -1))
    if kind == b"set":
        return list(client.smembers(name))
    if kind == b"list":
        return list(client.lrange(name, 0, -1))
    value = client.get(name)
    return [] if value is None else [value]
