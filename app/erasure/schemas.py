"""Erasures on the wire."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, Field

from app.bodies import Body, example
from app.erasure.models import Erasure, ErasureKind, ErasureStatus


class TenantErasure(Body):
    """`confirm` is the tenant's name."""

    model_config = example({"confirm": "Acme"})

    confirm: Annotated[str, Field(max_length=200)]


class Erased(StrEnum):
    TENANT = "tenant"
    USER = "user"


class ErasureRequested(BaseModel):
    """`receipt` is shown this once; it is all that is needed to look at the erasure."""

    receipt: str
    status: ErasureStatus


class ErasureCounts(BaseModel):
    """What is gone so far: rows, objects and their bytes, and responses and files at the provider."""

    rows: int
    objects: int
    bytes: int
    provider: int


class ErasureView(BaseModel):
    status: ErasureStatus
    what: Erased
    requested_at: datetime
    completed_at: datetime | None
    counts: ErasureCounts

    @classmethod
    def of(cls, parts: Sequence[Erasure]) -> "ErasureView":
        """Of all parts of one receipt."""
        statuses, ends = {part.status for part in parts}, [part.completed_at for part in parts]
        done = [end for end in ends if end is not None]
        return cls(
            status=statuses.pop() if len(statuses) == 1 else ErasureStatus.RUNNING,
            what=Erased.TENANT if {part.kind for part in parts} == {ErasureKind.TENANT} else Erased.USER,
            requested_at=min(part.created_at for part in parts),
            completed_at=max(done) if len(done) == len(parts) else None,
            counts=ErasureCounts(
                rows=sum(part.rows for part in parts),
                objects=sum(part.objects for part in parts),
                bytes=sum(part.size_bytes for part in parts),
                provider=sum(part.provider for part in parts),
            ),
        )
