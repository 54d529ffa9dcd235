// How a client's program tells of its checks; it lies beside the program, and beside the packages.
import { readFileSync } from "node:fs";

/** Do the checks of every group, and tell of each, and of the version of what they try. */
export async function tellAll(tried, groups) {
  const installed = new URL(`./node_modules/${tried}/package.json`, import.meta.url);
  console.log(`version ${JSON.parse(readFileSync(installed, "utf8")).version}`);
  for (const [group, checks] of Object.entries(groups)) {
    for (const [name, check] of Object.entries(checks)) {
      try {
        await check();
        console.log(`ok ${group}: ${name}`);
      } catch (error) {
        process.exitCode = 1;
        const found = new RegExp(`(?:${group}|main)\\.mjs:(\\d+)`).exec(error.stack ?? "");
        const why = `${error.name} ${error.message}`.replace(/\s+/g, " ").slice(0, 300);
        console.log(`FAIL ${group}: ${name}: line ${found?.[1] ?? "?"}: ${why}`);
      }
    }
  }
}
