// What a front end does with the modules of docs/front-end.md, one part for each of their promises. Prints what it found
// as JSON. The modules are written beside this file by the test.

import { Refused, signIn, signOut, signUp, type api as Api } from "./api.ts";
import { follow, start, stop, type Turn } from "./chat.ts";
import { conversations, messages, pieces, reopen } from "./history.ts";
import { attachment, gallery, upload } from "./images.ts";
import { agents, check, fieldsOf } from "./options.ts";
import { send } from "./send.ts";

declare const process: { argv: string[] };

interface Given {
  email: string;
  password: string;
  foreign: string; // a conversation of somebody else
  photo: string; // base64, a PNG
  mask: string;
}
interface Asked {
  request: string;
  lastEventId: string | null;
  status: number;
}

const given = JSON.parse(process.argv[2] ?? "") as Given;
const staying = new AbortController().signal;
const stored = new Map<string, string>();
const asked: Asked[] = [];
// What is to happen to the next streams, one each: how many chunks come, and how it ends.
const cuts: { after: number; clean: boolean }[] = [];
// What answers in place of the API, once each.
const outages: (() => Response)[] = [];

Object.assign(globalThis, {
  localStorage: {
    getItem: (name: string) => stored.get(name) ?? null,
    setItem: (name: string, value: string) => void stored.set(name, value),
    removeItem: (name: string) => void stored.delete(name),
  },
  fetch: watched(globalThis.fetch),
});
Math.random = () => 0.01; // waits are short

const signedUp = await signsUp();
await signIn(given.email, given.password);
const found = {
  signedUp,
  wrongPassword: await code(() => signIn(given.email, "not the password")),
  tabs: await refreshesInTabs(),
  sent: await sends(),
  left: await leavesAStream(),
  drawn: await draws(),
  sameRun: await startsOnce(),
  stopped: await stops(),
  reloaded: await comesBack(),
  edited: await edits(),
  options: await offersOptions(),
  foreign: await code(() => reopen(given.foreign, () => undefined, staying)),
  signedOut: await leaves(),
};
console.log(JSON.stringify(found));

/** A new user, who is signed in and has nothing yet. */
async function signsUp(): Promise<unknown[]> {
  const first = () => signUp(`new-${given.email}`, given.password, "Lighthouses");
  await first();
  return [(await conversations()).data.length, await code(first)];
}

/** The lines that the page shows apart. */
async function sends(): Promise<unknown[]> {
  const turns: Turn[] = [];
  await send((turn) => turns.push(turn), new AbortController());
  const last = turns.at(-1);
  return [last?.run?.status, last?.message?.attachments.length];
}

async function leavesAStream(): Promise<string> {
  const leaving = new AbortController();
  const run = await start(drawing("Draw slowly [offline: slow=60]"), crypto.randomUUID());
  const left = follow(run.id, () => leaving.abort(), leaving.signal);
  const error = await left.then(() => undefined, (thrown: unknown) => thrown);
  await stop(run.id);
  return error instanceof Error ? error.name : String(error);
}

/** Three tabs whose access token has ended ask at once. */
async function refreshesInTabs(): Promise<{ answers: number[]; refreshes: number }> {
  const tabs = await Promise.all([1, 2, 3].map((tab) => import(`./api.ts?tab=${tab}`) as Promise<{ api: typeof Api }>));
  const [[name, tokens] = ["", ""]] = stored;
  stored.set(name, JSON.stringify({ ...JSON.parse(tokens), access_token: "ended" }));
  asked.length = 0;
  const answers = await Promise.all(tabs.map(({ api }) => api.GET("/v1/conversations")));
  const refreshes = asked.filter((one) => one.request === "POST /v1/tokens/refresh");
  return { answers: answers.map(({ response }) => response.status), refreshes: refreshes.length };
}

/** One chat with a picture over a stream that breaks, ends early, and then lasts. */
async function draws(): Promise<object> {
  outages.push(fails, () => new Response("<h1>Bad gateway</h1>", { status: 502 }));
  const run = await start(drawing("Draw a lighthouse"), crypto.randomUUID());
  const leftOutages = outages.length;
  cuts.push({ after: 2, clean: false }, { after: 2, clean: true });
  asked.length = 0;
  const turns: Turn[] = [];
  const turn = await follow(run.id, (now) => turns.push(now), staying);
  const resumedAfter = asked.map((one) => one.lastEventId);
  const [message] = (await messages(run.conversation_id)).slice(-1);
  const [image] = Object.values(turn.images);
  const previews = turns.flatMap((one) => Object.values(one.previews)).map(({ index, of }) => `${index} of ${of}`);
  return {
    resumedAfter,
    leftOutages,
    turn: [turn.run?.status, ...Object.values(turn.tools), turn.failures.length],
    previews: [...new Set(previews)],
    message: [message?.status, ...(message ? pieces(message).map(pieceOf) : [])],
    sameText: [turn.text === message?.text, turn.text === turn.message?.text],
    samePicture: image?.object_id === turn.message?.attachments[0]?.object_id,
    sameLink: image?.url === message?.attachments[0]?.url,
    download: image?.download_url?.startsWith("http") && image.download_url !== image.url,
    again: (await follow(run.id, () => undefined, staying)).run?.status,
    listed: (await conversations()).data[0]?.id === run.conversation_id,
  };
}

function fails(): never {
  throw new TypeError("fetch failed");
}

async function startsOnce(): Promise<boolean> {
  const key = crypto.randomUUID();
  const [first, second] = await Promise.all([1, 2].map(() => start({ input: "Say hello" }, key)));
  return first?.id === second?.id;
}

async function stops(): Promise<object> {
  const run = await start(drawing("Draw slowly [offline: slow=60]"), crypto.randomUUID());
  let asking: Promise<unknown> | undefined;
  let busy: unknown;
  const turn = await follow(
    run.id,
    ({ tools }) => {
      if (asking || !Object.keys(tools).length) return;
      asking = refused(run.conversation_id).then((by) => ((busy = by), stop(run.id)));
    },
    staying,
  );
  await asking;
  const [message] = (await messages(run.conversation_id)).slice(-1);
  return { status: turn.run?.status, busy: busy === run.id, message: [message?.role, message?.status] };
}

/** Which run keeps the conversation busy. */
async function refused(conversation_id: string): Promise<unknown> {
  try {
    await start({ conversation_id, input: "And now?" }, crypto.randomUUID());
  } catch (error) {
    if (error instanceof Refused && error.problem?.code === "conversation_busy") return error.problem.run_id;
  }
  return undefined;
}

/** A reload while a run goes on. */
async function comesBack(): Promise<object> {
  const run = await start(drawing("Draw a boat [offline: slow=0.5]"), crypto.randomUUID());
  let past = 0;
  let last: Turn | undefined;
  await reopen(run.conversation_id, (before, turn) => ((past = before.length), (last = turn)), staying);
  let after: Turn | undefined;
  await reopen(run.conversation_id, (before, turn) => ((past += before.length), (after = turn)), staying);
  return { past, last: [last?.run?.status, Object.keys(last?.images ?? {}).length], followedAgain: after !== undefined };
}

async function edits(): Promise<object> {
  const photo = await upload(fileOf(given.photo), "photo.png");
  const mask = await upload(fileOf(given.mask), "mask.png", "mask");
  const edit = { ...drawing("Add a red scarf"), edit: photo.object_id, mask: mask.object_id };
  const run = await start(edit, crypto.randomUUID());
  const turn = await follow(run.id, () => undefined, staying);
  const [image] = Object.values(turn.images);
  const shown = (await gallery()).data.map((one) => one.object_id);
  return {
    purposes: [photo.purpose, mask.purpose],
    status: turn.run?.status,
    parent: image?.parent_object_id === photo.object_id,
    newest: shown[0] === image?.object_id,
    again: (await attachment(photo.object_id)).url !== null,
    unreadable: await code(() => upload(new Blob(["no image"]), "no.png")),
    // What the page says is to be shown.
    shown: await upload(new Blob(["no image"]), "no.png").then(() => "", String),
  };
}

async function offersOptions(): Promise<object> {
  const designer = (await agents()).find((one) => one.key === "designer");
  const options = designer ? fieldsOf(designer) : [];
  const wrong = { agent_key: "designer", input: "Draw", image: { size: "1x1" } };
  return {
    quality: options.find((one) => one.name === "quality")?.enum,
    faults: Object.keys(await check(wrong)),
    costs: "cost_usd" in (await check(drawing("Draw"))),
  };
}

async function leaves(): Promise<string | undefined> {
  await signOut();
  return code(() => conversations());
}

function drawing(input: string) {
  return { agent_key: "designer", input, image: { quality: "low" as const } };
}

function pieceOf(piece: ReturnType<typeof pieces>[number]): string {
  return typeof piece === "string" ? "text" : piece ? "image" : "deleted";
}

function fileOf(base64: string): Blob {
  return new Blob([Uint8Array.from(atob(base64), (one) => one.charCodeAt(0))], { type: "image/png" });
}

async function code(refusing: () => Promise<unknown>): Promise<string | undefined> {
  return refusing().then(
    () => "accepted",
    (error: unknown) => (error instanceof Refused ? error.problem?.code : String(error)),
  );
}

/** `fetch` that takes down what was asked, and breaks streams as `cuts` says. */
function watched(real: typeof fetch): typeof fetch {
  return async (input, init) => {
    const outage = outages.shift();
    if (outage) return outage();
    const request = new Request(input, init);
    const response = await real(request);
    const lastEventId = request.headers.get("Last-Event-ID");
    asked.push({ request: `${request.method} ${new URL(request.url).pathname}`, lastEventId, status: response.status });
    const cut = response.headers.get("Content-Type")?.startsWith("text/event-stream") ? cuts.shift() : undefined;
    if (!cut || !response.body) return response;
    let left = cut.after;
    const breaking = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller) {
        controller.enqueue(chunk);
        if (--left > 0) return;
        if (cut.clean) controller.terminate();
        else controller.error(new TypeError("fetch failed"));
      },
    });
    return new Response(response.body.pipeThrough(breaking), response);
  };
}
