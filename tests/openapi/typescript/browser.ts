// A page of docs/front-end.md's modules in a browser: signs in once, then shows all images of the newest conversation.

import { signIn } from "./api.ts";
import { conversations, messages } from "./history.ts";
import { paint } from "./images.ts";

const { email, password } = document.body.dataset;

if (!localStorage.length) await signIn(email ?? "", password ?? "");
const [conversation] = (await conversations()).data;
const shown = (await messages(conversation?.id ?? "")).flatMap((message) => message.attachments);
await Promise.all(
  shown.map(async (attachment) => {
    const image = document.body.appendChild(new Image());
    const loaded = new Promise((resolve) => image.addEventListener("load", resolve));
    paint(image, attachment);
    await loaded;
  }),
);
document.body.dataset["shown"] = "true";
