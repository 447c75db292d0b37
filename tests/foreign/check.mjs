// Connect, call, refresh, lose and give back an account at an OAuth server that none of us wrote. The tests are one story
// and run in order; the provider's counts say what really happened there.
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { Browser } from "./browser.mjs";
import { Foreign, Keyward, freePort } from "./keyward.mjs";

const ACCESS_TTL = 4;

let folder;
let foreign;
let keyward;
let account;
let slug;
let key;
let failed = false;

after(async () => {
  if (failed) for (const one of [foreign, keyward]) console.error(`--- ${one?.name} ---\n${await one?.tail()}`);
  await keyward?.stop();
  await foreign?.stop();
  if (folder) await rm(folder, { recursive: true, force: true });
});

/** One step of the story; without it the later ones make no sense. */
function step(name, work) {
  test(name, { timeout: 30_000 }, async (t) => {
    if (failed) return t.skip("an earlier step failed");
    try {
      await work();
    } catch (error) {
      failed = true;
      throw error;
    }
  });
}

/** What changed in the provider's counts. */
async function during(work) {
  const before = await foreign.counts();
  const result = await work();
  const now = await foreign.counts();
  const changes = {};
  for (const name of ["refreshes", "rotations", "reuse", "grants_revoked", "revocation_calls"]) {
    changes[name] = now[name] - before[name];
  }
  return { result, changes };
}

const NOTHING = { refreshes: 0, rotations: 0, reuse: 0, grants_revoked: 0, revocation_calls: 0 };

/** One refresh, or none when the keeper, which refreshes accounts in use ahead of time, had just been there. */
function atMostOneRefresh(changes) {
  const { refreshes } = changes;
  assert.ok(refreshes <= 1, JSON.stringify(changes));
  assert.deepEqual(changes, { ...NOTHING, refreshes, rotations: refreshes });
}

const whoami = () => keyward.call(key.key, `${slug}/whoami`);

const shown = () => keyward.must("GET", `accounts/${account.id}`);

/** Waits until the account's token has really ended, or until so long before that. */
async function expiry(before = -50) {
  const { access_expires_at: end } = await shown();
  await new Promise((resolve) => setTimeout(resolve, Date.parse(end) - before - Date.now()));
}

/** Ends when `look` does not throw any more; for what Keyward does in the background. */
async function eventually(look) {
  const deadline = Date.now() + 5_000;
  for (;;) {
    try {
      return await look();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

step("the provider and a gateway that knows it from gateway.toml start", async () => {
  folder = await mkdtemp(path.join(tmpdir(), "keyward-foreign-"));
  const admin = await freePort();
  const publicUrl = `http://127.0.0.1:${admin}`;
  foreign = await Foreign.start(folder, publicUrl, ACCESS_TTL);
  keyward = await Keyward.start(folder, { name: "keyward", issuer: foreign.issuer, admin, publicUrl });
});

step("an account is connected through the provider's own pages", async () => {
  account = await keyward.connect("foreign", "ada");
  assert.equal(account.status, "connected");
  assert.equal(account.validity, "valid");
  assert.equal(account.subject, "ada");
  assert.equal(account.email, "ada@example.com");
  assert.equal(account.display_name, "Ada");
  assert.deepEqual(account.missing_scopes, []);
  assert.ok(account.scopes.includes("notes.write") && account.scopes.includes("offline_access"));
  assert.equal(account.targets.length, 1);
  slug = account.targets[0].slug;
});

step("an agent's calls reach the API with the account's token", async () => {
  key = await keyward.key("agent", [slug], "write");
  const answer = await whoami();
  assert.equal(answer.status, 200, answer.text);
  assert.deepEqual(JSON.parse(answer.text), { sub: "ada", client: "gateway:basic", cookie: null });
  const note = await keyward.call(key.key, `${slug}/notes`, { method: "POST", body: "one" });
  assert.deepEqual(JSON.parse(note.text), { sub: "ada", text: "one" });
});

step("after the token's end a call gets a new one", async () => {
  await expiry();
  const { result, changes } = await during(whoami);
  assert.equal(result.status, 200, result.text);
  atMostOneRefresh(changes);
});

step("fifty calls on an expired token make one refresh", async () => {
  await expiry();
  const { result, changes } = await during(() => Promise.all(Array.from({ length: 50 }, whoami)));
  assert.deepEqual([...new Set(result.map(({ status }) => status))], [200]);
  atMostOneRefresh(changes);
});

step("fifty calls on a token that the provider ended early make one refresh", async () => {
  await expiry();
  await whoami();
  await foreign.control("end_access");
  const call = (_, index) =>
    index % 2 === 0 ? whoami() : keyward.call(key.key, `${slug}/notes`, { method: "POST", body: `${index}` });
  const { result, changes } = await during(() => Promise.all(Array.from({ length: 50 }, call)));
  assert.deepEqual([...new Set(result.map(({ status }) => status))], [200]);
  for (const [index, { text }] of result.entries()) if (index % 2) assert.equal(JSON.parse(text).text, `${index}`);
  atMostOneRefresh(changes);
});

step("a short-lived token that came so is replaced when it is refused before its end, too", async () => {
  await expiry(2_000);
  await foreign.control("end_access");
  const { result, changes } = await during(whoami);
  assert.equal(result.status, 200, result.text);
  atMostOneRefresh(changes);
});

step("a person may ask for a refresh, and for a check", async () => {
  const { result, changes } = await during(() => keyward.must("POST", `accounts/${account.id}/refresh`));
  assert.equal(result.status, "connected");
  atMostOneRefresh(changes);
  assert.equal((await keyward.must("POST", `accounts/${account.id}/validate`)).is_valid, true);
});

step("a grant revoked at the provider disconnects the account, told in one refused refresh", async () => {
  // Counted from before the revocation: the keeper may be the one who is told, ahead of the calls.
  const before = await foreign.counts();
  await foreign.control("revoke");
  await expiry();
  const answers = await Promise.all(Array.from({ length: 20 }, whoami));
  for (const { status, code, text } of answers) {
    assert.deepEqual([status, code], [503, "account_disconnected"], text);
    assert.ok(JSON.parse(text).detail.hint.includes(keyward.public), text);
  }
  assert.equal((await foreign.counts()).errors.invalid_grant, (before.errors.invalid_grant ?? 0) + 1);
  const again = await during(whoami);
  assert.equal(again.result.code, "account_disconnected");
  assert.deepEqual(again.changes, NOTHING);
  const { status, reason, validity } = await shown();
  assert.deepEqual([status, reason, validity], ["disconnected", "refresh_rejected", "invalid"]);
});

step("pasting back the callback's address connects it again, with its target and its grant", async () => {
  const query = `preset=write&account=${account.id}`;
  const page = await keyward.visit(new Browser(), "foreign", "ada", { query, stop: true });
  const { code, state, iss } = Object.fromEntries(page.url.searchParams);
  assert.equal(iss, foreign.issuer);
  const again = await keyward.must("POST", "integrations/foreign/callback", { code, state, iss });
  assert.equal(again.id, account.id);
  assert.equal(again.status, "connected");
  assert.deepEqual(again.targets, account.targets);
  assert.equal((await whoami()).status, 200);
  const used = await keyward.api("POST", "integrations/foreign/callback", { code, state, iss });
  assert.deepEqual([used.status, used.json.detail.code], [400, "invalid_state"]);
});

step("a grant revoked at the provider shows at once when the API refuses the token", async () => {
  await foreign.control("revoke");
  const refused = await whoami();
  assert.deepEqual([refused.status, refused.code], [503, "account_disconnected"], refused.text);
  account = await keyward.connect("foreign", "ada", { query: `preset=write&account=${account.id}` });
  assert.equal((await whoami()).status, 200);
});

step("somebody else does not take the account's place", async () => {
  const query = `preset=write&account=${account.id}`;
  const page = await keyward.visit(new Browser(), "foreign", "grace", { query, stop: true });
  const { code, state, iss } = Object.fromEntries(page.url.searchParams);
  const before = await foreign.counts();
  const { status, json } = await keyward.api("POST", "integrations/foreign/callback", { code, state, iss });
  assert.deepEqual([status, json.detail.code], [409, "another_identity"]);
  // What nobody wanted is given back.
  await eventually(async () => {
    assert.equal((await foreign.counts()).revocation_calls, before.revocation_calls + 1);
  });
  assert.equal((await whoami()).status, 200);
});

step("disconnecting revokes the grant at the provider", async () => {
  const asked = await keyward.api("DELETE", `accounts/${account.id}`);
  assert.deepEqual([asked.status, asked.json.detail.code], [409, "needs_confirmation"]);
  const before = await foreign.counts();
  const gone = await keyward.must("DELETE", `accounts/${account.id}?confirm=true`);
  assert.deepEqual(gone.removed_targets, [slug]);
  assert.equal((await whoami()).code, "target_not_found");
  await eventually(async () => {
    const now = await foreign.counts();
    assert.equal(now.revocation_calls, before.revocation_calls + 1);
    assert.equal(now.grants_revoked, before.grants_revoked + 1);
  });
  await eventually(async () => {
    const { items } = await keyward.must("GET", `audit?account=${account.id}`);
    const outcome = items.find(({ action }) => action === "account.revoked_at_provider");
    assert.equal(outcome?.detail.outcome, "ok", JSON.stringify(items.slice(0, 3)));
  });
});

step("a client whose secret goes into the form works as well", async () => {
  account = await keyward.connect("foreign_post", "linus", { query: "preset=read" });
  slug = account.targets[0].slug;
  key = await keyward.key("reader", [slug], "read");
  const { changes } = await during(() => keyward.must("POST", `accounts/${account.id}/refresh`));
  atMostOneRefresh(changes);
  assert.equal(JSON.parse((await whoami()).text).client, "gateway-post");
  const before = await foreign.counts();
  await keyward.must("DELETE", `accounts/${account.id}?confirm=true`);
  await eventually(async () => {
    assert.equal((await foreign.counts()).grants_revoked, before.grants_revoked + 1);
  });
});

step("whoever says no, and a secret or an issuer that is wrong, connect nothing", async () => {
  const browser = new Browser();
  const link = await keyward.must("GET", "integrations/foreign/auth_link?preset=read");
  const login = await browser.submit(await browser.open(link.authorization_url));
  const cancel = /href="([^"]*\/abort)"/.exec(login.html)[1];
  const back = await browser.open(new URL(cancel, login.url));
  const no = await browser.submit(back);
  assert.equal(no.title, "Failed to connect integration", no.html);
  assert.equal(no.url.searchParams.get("code"), "denied");

  const paste = async (provider) => {
    const page = await keyward.visit(new Browser(), provider, "ada", { stop: true });
    const { code, state, iss } = Object.fromEntries(page.url.searchParams);
    return keyward.api("POST", `integrations/${provider}/callback`, { code, state, iss });
  };
  const wrong = await paste("foreign_wrong");
  assert.deepEqual([wrong.status, wrong.json.detail.code], [400, "exchange_failed"]);
  assert.match(wrong.json.detail.hint, /invalid_client/);
  const mixed = await paste("foreign_mixed");
  assert.deepEqual([mixed.status, mixed.json.detail.code], [400, "invalid_state"]);
  assert.deepEqual((await keyward.must("GET", "accounts")).items, []);
});

step("the provider never saw a refresh token twice, and never failed", async () => {
  const { reuse, server_errors: broken, errors } = await foreign.counts();
  assert.equal(reuse, 0);
  assert.equal(broken, 0);
  // The two revoked grants, and the wrong secret.
  assert.deepEqual(errors, { invalid_grant: 2, invalid_client: 1 });
});
