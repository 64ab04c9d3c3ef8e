// As client.ts, with the client that @hey-api/openapi-ts makes of openapi.json. It is compiled, never run.

import { client } from "./heyapi/client.gen.ts";
import { followRun, listConversations, startRun } from "./heyapi/sdk.gen.ts";
import type { FieldError, Problem, RunEvent, RunView } from "./heyapi/types.gen.ts";

client.setConfig({ baseUrl: "http://127.0.0.1:8000", auth: () => "token" });

export async function draw(input: string): Promise<string> {
  const { stream } = await startRun({
    body: { input, agent_key: "designer", image: { quality: "low" } },
    headers: { Accept: "text/event-stream", "Idempotency-Key": crypto.randomUUID() },
  });
  let shown = "";
  for await (const event of stream) shown += isEvent(event) ? show(event) : "";
  return shown;
}

export async function comeBack(run_id: string): Promise<string> {
  const { stream } = await followRun({ path: { run_id } });
  let shown = "";
  for await (const event of stream) shown += isEvent(event) ? show(event) : "";
  return shown;
}

export async function titles(): Promise<string[]> {
  const { data, error } = await listConversations({ query: { limit: 20 } });
  if (error) throw new Error(sentence(error));
  return data.data.map((conversation) => conversation.title);
}

// The type of a stream has the replies beside it as well: 202 and a run, 204 and nothing.
function isEvent(one: RunEvent | RunView | void): one is RunEvent {
  return typeof one === "object" && "seq" in one;
}

// Without a default: the compiler names an event that has no case.
export function show(event: RunEvent): string {
  switch (event.type) {
    case "run.created":
      return `run ${event.run.id} of ${event.run.conversation_id}`;
    case "run.started":
      return event.run.agent_key;
    case "message.started":
      return event.message_id;
    case "text.delta":
      return event.delta;
    case "reasoning.delta":
      return event.delta;
    case "tool.started":
      return event.name;
    case "tool.progress":
      return event.status;
    case "tool.completed":
      return event.tool_call_id;
    case "image.partial":
      return `preview ${event.index} at ${event.url}`;
    case "attachment.created":
      return event.attachment.url ?? event.attachment.object_id;
    case "attachment.updated":
      return event.attachment.blurhash ?? "";
    case "attachment.failed":
      return event.code;
    case "agent.changed":
      return event.agent_key;
    case "message.completed":
      return event.message.text;
    case "run.completed":
      return event.run.status;
    case "run.failed":
      return event.error.code;
    case "run.cancelled":
      return event.run.status;
  }
}

// Codes that a front end acts on are literals of their own type: a misspelled one does not compile.
function sentence(problem: Problem): string {
  const fields = (problem.errors ?? []).map((error: FieldError) => error.field);
  return problem.code === "invalid_request" ? fields.join() : problem.detail;
}
