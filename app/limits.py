"""How many things of one owner may be open at a time in this process: what needs no plan and no database."""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from app.errors import FloorName, LimitExceeded, LimitScope
from app.settings import Settings


class InFlightLimit:
    """At most `allowed` of each owner at a time; `sentence` tells a user which limit was reached."""

    def __init__(self, limit: FloorName, scope: LimitScope, allowed: int, sentence: str, *, retry_after: float) -> None:
        self._limit: FloorName = limit
        self._scope: LimitScope = scope
        self._allowed = allowed
        self._sentence = sentence
        self._retry_after = retry_after
        self._taken = Counter[Hashable]()

    @property
    def open(self) -> int:
        """How many are open, of all owners."""
        return sum(self._taken.values())

    def acquire(self, owner: Hashable = None, amount: int = 1) -> "Permit":
        """Raises LimitExceeded. An owner who has nothing open may take any amount."""
        taken = self._taken[owner]
        if taken and taken + amount > self._allowed:
            raise LimitExceeded(
                self._sentence,
                limit=self._limit,
                scope=self._scope,
                allowed=self._allowed,
                retry_after=self._retry_after,
            )
        self._taken[owner] += amount
        return Permit(self._taken, owner, amount)


class Permit:
    """Given back at the end of a `with` block, or with its last reference: a reply may be dropped before it begins.

    `on_release` is called then, once.
    """

    def __init__(self, taken: Counter[Hashable], owner: Hashable, amount: int) -> None:
        self.on_release: Callable[[], None] | None = None
        self._taken, self._owner, self._amount = taken, owner, amount

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        self._taken[self._owner] -= self._amount
        self._amount = 0
        if not self._taken[self._owner]:
            del self._taken[self._owner]
        on_release, self.on_release = self.on_release, None
        if on_release is not None:
            on_release()

    def __del__(self) -> None:
        self.release()


@dataclass(frozen=True)
class Limits:
    """Those of one API process."""

    streams: InFlightLimit
    uploads: InFlightLimit
    upload_bytes: InFlightLimit

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            streams=InFlightLimit(
                "user_streams",
                "user",
                settings.user_streams,
                "You follow as many runs at once as you may: close a stream, then open the next.",
                retry_after=5,
            ),
            uploads=InFlightLimit(
                "tenant_uploads",
                "tenant",
                settings.tenant_uploads,
                "Your organisation sends as many images at once as it may: wait until one of them is stored.",
                retry_after=2,
            ),
            upload_bytes=InFlightLimit(
                "tenant_upload_bytes",
                "tenant",
                settings.tenant_upload_bytes,
                "Your organisation sends as many bytes of images at once as it may: wait until some are stored.",
                retry_after=5,
            ),
        )
