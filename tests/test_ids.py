"""Ids sort as they were made: lists, histories and cursors lean on it."""

import time
from uuid import UUID

from app.db import uuid7


def test_ids_of_one_millisecond_sort_in_the_order_they_were_made() -> None:
    made: list[UUID] = []
    for _ in range(200):
        made.append(uuid7())
        time.sleep(0.00002)  # a fiftieth of a millisecond; a question to the database takes longer
    assert made == sorted(made)
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
