from app.agents._shared.specs import AgentSpec


def get_agent_spec() -> AgentSpec:
    return AgentSpec(
        key="designer",
        display_name="Image Designer",
        description="Creates and edits marketing visuals.",
        model_key="code",  # uses settings.agent_code_model or agent_default_model
        tool_keys=("image_generation",),
        tool_configs={
            "image_generation": {
                "size": "1024x1024",
                "quality": "high",
                "format": "png",
                "background": "auto",
                # optional: "compression": 80, "partial_images": 2
            }
        },
        prompt_path=...,  # your prompt file
    )
