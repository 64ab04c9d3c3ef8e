// A front end's use of the API, with the types that openapi-typescript makes of openapi.json. It is compiled, never run.

import createClient from "openapi-fetch";
import type { components, paths } from "./api.d.ts";

type RunEvent = components["schemas"]["RunEvent"];
type Problem = components["schemas"]["Problem"];

const api = createClient<paths>({ baseUrl: "http://127.0.0.1:8000" });

export async function signIn(email: string, password: string): Promise<string> {
  const { data, error } = await api.POST("/v1/tokens", { body: { email, password } });
  if (error) throw new Error(sentence(error));
  return data.access_token;
}

export async function draw(input: string): Promise<string> {
  const { data, error, response } = await api.POST("/v1/runs", {
    body: { input, agent_key: "designer", image: { quality: "low" } },
    headers: { Accept: "text/event-stream" },
    parseAs: "stream",
  });
  if (error) throw new Error(sentence(error));
  let shown = "";
  for await (const event of eventsOf(data as unknown as ReadableStream<Uint8Array<ArrayBuffer>>)) shown += show(event);
  return `${response.headers.get("X-Run-Id")}: ${shown}`;
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
  if (problem.code === "invalid_request") return (problem.errors ?? []).map((error) => error.field).join();
  return problem.detail;
}

async function* eventsOf(body: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<RunEvent> {
  let rest = "";
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6)) as RunEvent;
  }
}
