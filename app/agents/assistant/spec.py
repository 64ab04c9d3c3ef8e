from app.agents._shared.specs import AgentSpec


def get_agent_spec() -> AgentSpec:
    return AgentSpec(
        key="assistant",
        display_name="Assistant",
        description="Answers questions, sketches images and calls in the designer for visuals.",
        model_key="default",
        tool_keys=("image_generation", "current_time"),
        handoff_keys=("designer",),
    )
