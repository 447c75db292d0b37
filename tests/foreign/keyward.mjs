// What the check and the soak share: starting the foreign server and gateways, the admin API, a person who connects an
// account, an agent that calls.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { openSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Browser } from "./browser.mjs";

const here = path.dirname(fileURLToPath(import.meta.url));
const binary = process.env.KEYWARD_BIN ?? path.join(here, "../../target/debug/keyward");

export const adminToken = `kwa_${randomBytes(24).toString("base64url")}`;
export const sealingKeys = `k1:${randomBytes(32).toString("base64")}`;

/** Characters that only come out right when both sides encode the basic header as RFC 6749 §2.3.1 says. */
export const clients = {
  foreign: { id: "gateway:basic", secret: "s:e+c r%25e&t/=~", auth: "client_secret_basic" },
  foreign_post: { id: "gateway-post", secret: "an&other=secret+", auth: "client_secret_post" },
  foreign_wrong: { id: "gateway-wrong", secret: "the right one", auth: "client_secret_basic" },
  foreign_mixed: { id: "gateway-mixed", secret: "mixed", auth: "client_secret_basic" },
};

/** A port that was free a moment ago. The redirect URI must be known before either server starts. */
export async function freePort() {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  return port;
}

class Process {
  constructor(command, args, { folder, name, env, stdout }) {
    this.log = path.join(folder, `${name}.log`);
    this.name = name;
    const log = openSync(this.log, "a");
    // Nothing of this shell's settings gets in.
    const own = { PATH: process.env.PATH, HOME: folder, ...env };
    this.child = spawn(command, args, { cwd: folder, env: own, stdio: ["ignore", stdout ?? log, log] });
    this.ended = once(this.child, "exit");
  }

  get isRunning() {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  async tail() {
    const said = await readFile(this.log, "utf8");
    return said.split("\n").slice(-60).join("\n");
  }

  async stop() {
    if (!this.isRunning) return;
    this.child.kill("SIGTERM");
    const hard = setTimeout(() => this.child.kill("SIGKILL"), 10_000);
    await this.ended;
    clearTimeout(hard);
  }
}

/** The OAuth server and its API. */
export class Foreign extends Process {
  static async start(folder, publicUrl, accessTtl) {
    const registered = Object.entries(clients).map(([provider, client]) =>
      ({ ...client, redirect_uri: `${publicUrl}/integrations/${provider}/callback` }));
    const env = { FOREIGN_CLIENTS: JSON.stringify(registered), FOREIGN_ACCESS_TTL: String(accessTtl) };
    const args = [path.join(here, "server.mjs")];
    const self = new Foreign(process.execPath, args, { folder, name: "foreign", env, stdout: "pipe" });
    // Its one line, or its end.
    const line = await Promise.race([once(self.child.stdout, "data"), self.ended.then(() => null)]);
    assert.ok(line, `the foreign server ended:\n${await self.tail()}`);
    self.issuer = line[0].toString().trim();
    return self;
  }

  async counts() {
    const counts = await (await fetch(`${this.issuer}/__counts`)).json();
    return { ...counts, refreshes: counts.token_calls.refresh_token ?? 0 };
  }

  async control(what) {
    const answer = await fetch(`${this.issuer}/__${what}`, { method: "POST" });
    assert.equal(answer.status, 200);
  }
}

/** A running gateway. */
export class Keyward extends Process {
  static async start(folder, { name, issuer, admin, publicUrl, env = {} }) {
    await mkdir(path.join(folder, name), { recursive: true });
    const proxy = `127.0.0.1:${await freePort()}`;
    const values = { proxy, admin: `127.0.0.1:${admin}`, public_url: publicUrl, issuer };
    const template = await readFile(path.join(here, "gateway.toml"), "utf8");
    const config = template.replace(/\{\{(\w+)\}\}/g, (_, key) => values[key]);
    await writeFile(path.join(folder, name, "gateway.toml"), config);
    const credentials = Object.entries(clients).flatMap(([provider, { id, secret }]) => [
      [`OAUTH_${provider.toUpperCase()}_CLIENT_ID`, id],
      [`OAUTH_${provider.toUpperCase()}_CLIENT_SECRET`, provider === "foreign_wrong" ? "a wrong one" : secret],
    ]);
    const self = new Keyward(binary, ["serve"], {
      folder: path.join(folder, name),
      name,
      env: { KEYWARD_ADMIN_TOKEN: adminToken, ...Object.fromEntries(credentials), ...env },
    });
    self.proxy = `http://${proxy}`;
    self.admin = `http://127.0.0.1:${admin}`;
    self.public = publicUrl;
    await self.#ready();
    return self;
  }

  async #ready() {
    const deadline = Date.now() + 20_000;
    while (Date.now() < deadline && this.isRunning) {
      const answer = await fetch(`${this.proxy}/readyz`).catch(() => null);
      if (answer?.ok) return;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await this.stop();
    throw new Error(`keyward is not ready:\n${await this.tail()}`);
  }

  /** A call of the admin API, in the organization; answers status and JSON. */
  async api(method, place, body) {
    const answer = await fetch(`${this.admin}/api/organizations/default/${place}`, {
      method,
      headers: { authorization: `Bearer ${adminToken}`, ...(body && { "content-type": "application/json" }) },
      body: body && JSON.stringify(body),
    });
    const said = await answer.text();
    return { status: answer.status, json: said ? JSON.parse(said) : null };
  }

  /** The same, when nothing but success will do. */
  async must(method, place, body) {
    const { status, json } = await this.api(method, place, body);
    assert.ok(status < 300, `${method} ${place}: ${status} ${JSON.stringify(json)}`);
    return json;
  }

  /** An agent's request. */
  async call(key, place, { method = "GET", body } = {}) {
    const answer = await fetch(`${this.proxy}/proxy/${place}`, {
      method,
      headers: { authorization: `Bearer ${key}`, ...(body && { "content-type": "text/plain" }) },
      body,
    });
    const said = await answer.text();
    return { status: answer.status, code: answer.headers.get("keyward-error"), headers: answer.headers, text: said };
  }

  /** Opens a one-time link and goes on to the provider's pages: sign in as somebody, agree. Ends at our callback's page,
   * or at its address with `stop`. */
  async visit(browser, provider, person, { query = "preset=write", stop = false } = {}) {
    const link = await this.must("GET", `integrations/${provider}/auth_link?${query}`);
    const asked = await browser.open(link.authorization_url);
    assert.equal(asked.status, 200);
    let page = await browser.submit(asked);
    const until = { stop: stop ? `${this.public}/integrations/${provider}/callback` : undefined };
    if (/name="login"/.test(page.html)) page = await browser.submit(page, { login: person, password: "any" });
    assert.match(page.html, /name="prompt" value="consent"/);
    return browser.submit(page, {}, until);
  }

  /** The whole way; answers the account. */
  async connect(provider, person, options) {
    const browser = new Browser();
    const page = await this.visit(browser, provider, person, options);
    assert.equal(page.title, "Connecting integration…", page.html);
    const end = await browser.submit(page);
    assert.equal(end.title, "Integration connected", end.url.href);
    const id = end.url.searchParams.get("account");
    return this.must("GET", `accounts/${id}`);
  }

  /** A key with a grant for each of these targets. */
  async key(name, slugs, access) {
    const made = await this.must("POST", "keys", { name });
    for (const slug of slugs) await this.must("PUT", `keys/${made.id}/grants/${slug}`, { access });
    return made;
  }
}
