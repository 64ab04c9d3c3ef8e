// One run by the client that @hey-api/openapi-ts makes, which sends its request again whenever the connection breaks.
// Prints each event, and the code of a refusal, as a line of JSON.

import { client } from "./heyapi/client.gen.ts";
import { startRun } from "./heyapi/sdk.gen.ts";
import type { Problem } from "./heyapi/types.gen.ts";

declare const process: { argv: string[] };

const [baseUrl, token, input, key] = process.argv.slice(2) as [string, string, string, string?];
const refused = new AbortController();

client.setConfig({ baseUrl, auth: () => token, fetch: refusing });
const { stream } = await startRun({
  body: { input, agent_key: "designer", image: { quality: "low" } },
  headers: { Accept: "text/event-stream", ...(key && { "Idempotency-Key": key }) },
  signal: refused.signal,
  sseDefaultRetryDelay: 10,
  sseMaxRetryDelay: 100,
});
for await (const event of stream) console.log(JSON.stringify(event));

// The client tries for ever, whatever the status: a refusal has to end it.
async function refusing(request: RequestInfo | URL): Promise<Response> {
  const response = await fetch(request);
  if (response.status < 400 || response.status >= 500) return response;
  const problem = (await response.clone().json()) as Problem;
  if (problem.code === "idempotency_in_flight" || problem.code === "limit_exceeded") return response;
  console.log(JSON.stringify(problem));
  refused.abort();
  return response;
}
