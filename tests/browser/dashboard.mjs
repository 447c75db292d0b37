// What the tests share: the browser, signed-in and fresh contexts that watch for errors, and the ways through the pages.
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import path from "node:path";
import { chromium } from "playwright-core";

const need = (name) => {
  const value = process.env[name];
  assert.ok(value, `${name} is not set: start these tests with ./run`);
  return value;
};

export const origin = new URL(need("KEYWARD_DASHBOARD")).origin;
export const token = need("KEYWARD_TEST_TOKEN");
export const agentKey = need("KEYWARD_AGENT_KEY");
export const provider = process.env.KEYWARD_PROVIDER ?? "sandbox";

/** A browser whose contexts note everything that must not happen. */
export class Dashboard {
  #browser;
  #session;
  #troubles = [];
  #pictures = 0;

  static async open() {
    const self = new Dashboard();
    self.#browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync",
      ],
    });
    const context = await self.#browser.newContext();
    const page = await context.newPage();
    await page.goto(`${origin}/login`);
    await signIn(page);
    self.#session = await context.storageState();
    await context.close();
    return self;
  }

  close() {
    return this.#browser.close();
  }

  /** A context with the session's cookie. */
  signedIn(options = {}) {
    return this.fresh({ ...options, storageState: this.#session });
  }

  /** A context that nobody is signed in to. */
  async fresh(options = {}) {
    const context = await this.#browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
    context.setDefaultTimeout(15_000);
    const note = (what, url) => {
      // The sandbox's own pages are not what is tested here.
      if (!url || url.startsWith(origin)) this.#troubles.push(`${what} (${url || "no address"})`);
    };
    context.on("console", (message) => {
      const refused = /Content Security Policy|content security policy/.test(message.text());
      if (message.type() === "error" || refused) note(message.text(), refused ? "" : message.location().url);
    });
    context.on("weberror", (error) => note(String(error.error()), error.page()?.url()));
    await context.addInitScript(() => {
      document.addEventListener("securitypolicyviolation", (event) => {
        console.error(`Content Security Policy: ${event.violatedDirective} refused ${event.blockedURI}`);
      });
    });
    return context;
  }

  /** Fails when a page complained since the last call. `expected` names what may be among it. */
  calm(expected = /(?!)/) {
    const troubles = this.#troubles.filter((trouble) => !expected.test(trouble));
    this.#troubles = [];
    assert.deepEqual(troubles, [], "the browser's console is quiet");
  }

  async picture(page, name) {
    const folder = process.env.KEYWARD_SCREENSHOTS;
    if (!folder) return;
    await mkdir(folder, { recursive: true });
    this.#pictures += 1;
    const number = String(this.#pictures).padStart(2, "0");
    await page.screenshot({ path: path.join(folder, `${number}-${name}.png`), fullPage: true });
  }
}

export async function signIn(page) {
  await page.getByLabel("Admin token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.waitForURL((url) => url.pathname !== "/login");
}

/** The card of the sandbox provider. */
export const card = (page) => page.locator(`#provider-${provider}`);

/** The account of this person on the integrations page. */
export const account = (page, email) => card(page).getByRole("article", { name: email, exact: true });

/** The provider's consent page: this person says yes, or no. */
export async function consent(page, email, answer = "Allow") {
  await page.waitForURL((url) => url.pathname.endsWith("/oauth/authorize"));
  await page.getByRole("radio", { name: email }).check();
  await page.getByRole("button", { name: answer, exact: true }).click();
}

export const heading = (page, name) => page.getByRole("heading", { level: 1, name });

/**
 * Notes the headings that a person sees one after the other, with the query that stands in the address bar then. What
 * finishes a flow is held up a little, so that the page before it is painted as with a provider far away. The page
 * reports by itself: Playwright can't ask a page that is about to be left.
 */
export async function phases(context) {
  const seen = [];
  await context.exposeBinding("painted", (_, phase) => seen.push(phase));
  await context.addInitScript(() => {
    document.addEventListener("DOMContentLoaded", () => {
      requestAnimationFrame(() => {
        const heading = document.querySelector("h1");
        window.painted({ heading: heading?.innerText ?? "", shown: !!heading?.checkVisibility(), query: location.search });
      });
    });
  });
  await context.route(`${origin}/integrations/*/callback`, async (route) => {
    if (route.request().method() === "POST") await new Promise((resolve) => { setTimeout(resolve, 700); });
    await route.continue();
  });
  return seen;
}

/** The API with the admin token. */
export async function api(method, place) {
  const reply = await fetch(`${origin}/api/organizations/default${place}`, {
    method, headers: { authorization: `Bearer ${token}` },
  });
  assert.ok(reply.ok, `${method} ${place}: ${reply.status} ${await reply.clone().text()}`);
  return reply.json();
}

/** Disconnects this person's account, if there is one, so that tests don't depend on each other. */
export async function forget(email) {
  const { items } = await api("GET", `/accounts?provider=${provider}`);
  for (const found of items.filter((item) => item.email === email)) {
    const reply = await fetch(`${origin}/api/organizations/default/accounts/${found.id}?confirm=true`, {
      method: "DELETE", headers: { authorization: `Bearer ${token}` },
    });
    assert.ok(reply.ok, `disconnecting ${email}: ${reply.status}`);
  }
}
