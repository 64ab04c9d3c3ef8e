// Prints what a browser runs of a module: the same lines without their types.
import { readFileSync } from "node:fs";
import { stripTypeScriptTypes } from "node:module";

const modules = Object.fromEntries(process.argv.slice(2).map((name) => [name, stripTypeScriptTypes(readFileSync(name, "utf8"))]));
console.log(JSON.stringify(modules));
