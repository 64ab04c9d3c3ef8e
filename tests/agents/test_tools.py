"""Function tools and handoffs, as they appear in the stream."""

from tests.app_server import ApiUser, kinds, one


def test_a_function_tool_is_called_and_told(ada: ApiUser) -> None:
    events = ada.ask("What is the time? [offline: call=current_time]")
    started = one(events, "tool.started")
    assert started["name"] == "current_time"
    assert one(events, "tool.completed")["tool_call_id"] == started["tool_call_id"]
    assert kinds(events)[-1] == "run.completed"


def test_a_handoff_changes_the_agent_and_is_no_tool_call(ada: ApiUser) -> None:
    events = ada.ask("Draw a red house [offline: call=transfer_to_designer]")
    assert one(events, "agent.changed")["agent_key"] == "designer"
    assert not [event for event in events if event["type"] == "tool.started" and "transfer" in event["name"]]
    assert kinds(events)[-1] == "run.completed"
