"""What is deleted with an image: its previews as well, at once."""

import asyncio
import time

import pytest

from app.storage import keys
from app.storage.store import Store
from tests import timeouts
from tests.app_server import ApiUser, AppServer, one


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


@pytest.mark.slow
@pytest.mark.parametrize("deleted", ["attachment", "conversation"])
def test_a_deleted_image_loses_its_previews_at_once(server: AppServer, ada: ApiUser, deleted: str) -> None:
    store: Store = server.uvicorn.app.state.store
    kept = ada.draw("Draw a boat", image={"partial_images": 2})
    events = ada.draw("Draw a house", image={"partial_images": 2})
    assert len(previews(store, ada)) == 4
    run, made = events[0]["run"], one(events, "attachment.created")["attachment"]
    paths = {
        "attachment": f"/v1/attachments/{made['object_id']}",
        "conversation": f"/v1/conversations/{run['conversation_id']}",
    }
    assert ada.http.delete(paths[deleted]).status_code == 204
    deadline = time.monotonic() + timeouts.STORED_AFTER_OUTAGE
    while len(left := previews(store, ada)) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(kept[0]["run_id"] in key for key in left)


def previews(store: Store, ada: ApiUser) -> list[str]:
    async def listed() -> list[str]:
        prefix = f"{keys.tenant_prefix(ada.signed_up['tenant']['id'])}{keys.PREVIEWS}/"
        return [item.key async for item in store.list(prefix)]

    return asyncio.run(listed())
