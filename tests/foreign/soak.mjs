// The load of ./soak: agents on two gateways share accounts whose tokens live for seconds.
//
// Half of the accounts are used all the time: their tokens are refreshed ahead of their end. The others are left alone until
// their token has ended, and then wanted by every agent on both gateways at the same moment.
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { performance } from "node:perf_hooks";
import { parseArgs } from "node:util";
import { Foreign, Keyward, freePort, sealingKeys } from "./keyward.mjs";

const { values: given } = parseArgs({
  options: {
    minutes: { type: "string", default: "10" },
    agents: { type: "string", default: "12" },
    accounts: { type: "string", default: "6" },
    ttl: { type: "string", default: "4" },
    "pause-ms": { type: "string", default: "10" },
  },
});
const minutes = Number(given.minutes);
const agents = Number(given.agents);
const ttl = Number(given.ttl);
const pauseMs = Number(given["pause-ms"]);
const store = process.env.KEYWARD_SOAK_POSTGRES;
assert.ok(store, "KEYWARD_SOAK_POSTGRES is not set: start this with ./soak");
assert.ok(minutes > 0 && agents > 0 && ttl > 0, "--minutes, --agents and --ttl must be above 0");

/** The others work in the last part of each round, and are idle for longer than a token lives before. */
const ROUND_MS = (ttl + 3) * 1000;
const IDLE_MS = (ttl + 1) * 1000;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const seen = { requests: 0, failures: [], took: [] };
let interrupted = false;
process.once("SIGINT", () => { interrupted = true; });
process.once("SIGTERM", () => { interrupted = true; });

function person(index) {
  return `person${index}`;
}

/** One request, checked to the last byte. */
async function request(gateway, key, slug, owner, number) {
  const text = `note ${number}`;
  const posts = number % 4 === 3;
  const begun = performance.now();
  const failed = (why) => seen.failures.push(`${new Date().toISOString()} ${gateway.name} ${owner}: ${why}`);
  try {
    const answer = posts
      ? await gateway.call(key, `${slug}/notes`, { method: "POST", body: text })
      : await gateway.call(key, `${slug}/whoami`);
    const said = answer.status === 200 ? JSON.parse(answer.text) : {};
    if (said.sub !== owner || (posts && said.text !== text)) failed(`${answer.status} ${answer.text}`);
  } catch (error) {
    failed(`${error.message} ${error.cause?.message ?? ""}`);
  }
  seen.requests += 1;
  seen.took.push(performance.now() - begun);
}

async function agent(gateway, key, { slug, owner, steady }, end) {
  for (let number = 0; Date.now() < end && !interrupted; number += 1) {
    if (!steady) {
      const into = Date.now() % ROUND_MS;
      if (into < IDLE_MS) {
        await sleep(Math.min(IDLE_MS - into, Math.max(end - Date.now(), 0)));
        continue;
      }
    }
    await request(gateway, key, slug, owner, number);
    if (pauseMs > 0) await sleep(pauseMs * (0.5 + Math.random()));
  }
}

/** Lines of a gateway's log that are worth a look. */
async function complaints(gateway) {
  const log = await readFile(gateway.log, "utf8");
  return log.split("\n").filter((line) => /\b(WARN|ERROR)\b/.test(line));
}

const folder = await mkdtemp(path.join(tmpdir(), "keyward-soak-"));
const started = [];
let good = false;
try {
  const admin = await freePort();
  const publicUrl = `http://127.0.0.1:${admin}`;
  const foreign = await Foreign.start(folder, publicUrl, ttl);
  started.push(foreign);
  const env = { KEYWARD_STORE_URL: store, KEYWARD_SEALING_KEYS: sealingKeys };
  const one = await Keyward.start(folder, { name: "one", issuer: foreign.issuer, admin, publicUrl, env });
  started.push(one);

  const accounts = [];
  for (let index = 0; index < Number(given.accounts); index += 1) {
    const account = await one.connect("foreign", person(index));
    accounts.push({ slug: account.targets[0].slug, owner: person(index), steady: index % 2 === 0 });
  }
  const { key } = await one.key("soak", accounts.map(({ slug }) => slug), "write");

  // Started last: it reads keys and grants at its start.
  const two = await Keyward.start(folder, { name: "two", issuer: foreign.issuer, admin: await freePort(), publicUrl, env });
  started.push(two);

  const before = await foreign.counts();
  const begun = Date.now();
  const end = begun + minutes * 60_000;
  const report = setInterval(() => {
    const passed = Math.round((Date.now() - begun) / 1000);
    console.error(`${passed} s: ${seen.requests} requests, ${seen.failures.length} failures`);
  }, 30_000);
  const work = [one, two].flatMap((gateway) =>
    Array.from({ length: agents }, (_, index) => agent(gateway, key, accounts[index % accounts.length], end)));
  await Promise.all(work);
  clearInterval(report);

  const after = await foreign.counts();
  const { items } = await one.must("GET", "accounts?limit=200");
  const statuses = items.map(({ status }) => status);
  const noted = [...await complaints(one), ...await complaints(two)];
  const seconds = (Date.now() - begun) / 1000;
  seen.took.sort((a, b) => a - b);
  const share = (part) => `${seen.took[Math.min(seen.took.length - 1, Math.floor(seen.took.length * part))]?.toFixed(1)} ms`;
  const refusedTokens = (after.api[401] ?? 0) - (before.api[401] ?? 0);
  const report_lines = {
    duration: `${seconds.toFixed(0)} s, tokens of ${ttl} s, ${accounts.length} accounts, 2 gateways with ${agents} agents each`,
    requests: `${seen.requests} (${(seen.requests / seconds).toFixed(0)}/s)`,
    failures: seen.failures.length,
    latency: `p50 ${share(0.5)}, p99 ${share(0.99)}, longest ${share(1)}`,
    "token calls": after.refreshes - before.refreshes,
    rotations: after.rotations - before.rotations,
    "reuse errors": after.reuse - before.reuse,
    "token errors": JSON.stringify(after.errors),
    "grants revoked": after.grants_revoked - before.grants_revoked,
    "401s repaired": `${refusedTokens} (tokens that ended a moment before Keyward expected it)`,
    accounts: [...new Set(statuses)].join(", "),
    "log complaints": noted.length,
  };
  for (const [name, value] of Object.entries(report_lines)) console.log(`${`${name}:`.padEnd(16)}${value}`);
  for (const line of [...seen.failures, ...noted].slice(0, 20)) console.log(`  ${line}`);

  good = !interrupted
    && seen.requests > 0
    && seen.failures.length === 0
    && after.reuse === 0
    && after.server_errors === 0
    && Object.keys(after.errors).length === 0
    && statuses.length === accounts.length
    && statuses.every((status) => status === "connected");
} catch (error) {
  console.error(error);
  for (const each of started) console.error(`--- ${each.name} ---\n${await each.tail()}`);
} finally {
  await Promise.all(started.reverse().map((each) => each.stop()));
  await rm(folder, { recursive: true, force: true });
}
console.log(good ? "soak: good" : "soak: FAILED");
process.exitCode = good ? 0 : 1;
