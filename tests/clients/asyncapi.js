// The official parser on one document: node asyncapi.js <file>. Prints each problem; exits 0 when there is none.
"use strict";

const { readFileSync } = require("fs");
const { Parser } = require("@asyncapi/parser");

const WARNING = 1; // severities: 0 error, 1 warning, 2 information, 3 hint

async function main() {
  const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
  const problems = diagnostics.filter(({ severity }) => severity <= WARNING);
  problems.forEach(({ path, message }) => console.log(`${path.join(".")}: ${message}`));
  if (problems.length || !document) process.exit(1);
  console.log(`${document.version()} ${document.allChannels().length} ${document.allOperations().length}`);
}

main();
