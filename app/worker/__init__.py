"""The execution of runs."""

from app.loading import load_unbuilt

# Before anything else imports it: of the models that the SDKs define for MCP and sandboxes, a turn uses none.
load_unbuilt("agents")
