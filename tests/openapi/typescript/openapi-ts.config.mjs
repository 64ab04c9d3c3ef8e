// Imports with their extension: node runs the generated client as it is.
export default {
  input: "./openapi.json",
  output: { path: "heyapi", module: { extension: ".ts" } },
  plugins: ["@hey-api/typescript", "@hey-api/sdk", "@hey-api/client-fetch"],
};
