// Connecting an account as a person does it: in a small window, in the page itself, without a script, by a link, and no.
import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import {
  Dashboard, account, api, card, consent, forget, heading, origin, phases, provider, signIn,
} from "./dashboard.mjs";

const GRACE = "grace@example.com";
const LINUS = "linus@example.com";

let dashboard;
let contexts = [];

before(async () => { dashboard = await Dashboard.open(); });
after(async () => { await dashboard?.close(); });
afterEach(async () => {
  await Promise.all(contexts.map((context) => context.close()));
  contexts = [];
});

async function signedIn(options) {
  const context = await dashboard.signedIn(options);
  contexts.push(context);
  return context;
}

async function fresh(options) {
  const context = await dashboard.fresh(options);
  contexts.push(context);
  return context;
}

/** A context in which windows can't be opened, as with a popup blocker. */
async function withoutPopups() {
  const context = await signedIn();
  await context.addInitScript(() => { window.open = () => null; });
  return context;
}

const connectButton = (page) => card(page).getByRole("button", { name: /^Connect/ });

test("signing in leads back to the page that was asked for", async () => {
  const context = await fresh();
  const page = await context.newPage();
  await page.goto(`${origin}/audit?status=403`);
  assert.equal(new URL(page.url()).pathname, "/login");

  await page.getByLabel("Admin token").fill("kwa_wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").waitFor();
  assert.match(await page.getByRole("alert").innerText(), /not the admin token/);
  await dashboard.picture(page, "login-wrong");

  await signIn(page);
  assert.equal(page.url(), `${origin}/audit?status=403`);
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.goto(`${origin}/integrations`);
  assert.equal(new URL(page.url()).pathname, "/login");
  dashboard.calm(/status of 401/);
});

test("in the page itself: three phases, then a connected and valid account", async () => {
  await forget(GRACE);
  const context = await withoutPopups();
  const page = await context.newPage();
  const seen = await phases(context);
  await page.goto(`${origin}/integrations`);
  await dashboard.picture(page, "integrations");
  await card(page).getByRole("radio", { name: "Read and write" }).check();
  await connectButton(page).click();
  await dashboard.picture(page, "consent");
  await consent(page, GRACE);

  await heading(page, "Integration connected").waitFor();
  const connecting = seen.find((phase) => phase.heading === "Connecting integration…");
  assert.deepEqual(connecting, { heading: "Connecting integration…", shown: true, query: "" }, "seen, and without the code");
  assert.match(page.url(), new RegExp(`/integrations/${provider}/connected\\?account=acc_`));
  assert.match(await page.getByRole("main").innerText(), new RegExp(GRACE));
  await dashboard.picture(page, "connected");
  await page.getByRole("link", { name: "Back to integrations" }).click();

  const grace = account(page, GRACE);
  await grace.waitFor();
  await grace.getByText("Connected", { exact: true }).waitFor();
  await grace.getByText("Valid", { exact: true }).waitFor();
  await grace.getByRole("list", { name: `Targets of ${GRACE}` }).getByText("/proxy/").first().waitFor();
  await grace.getByRole("button", { name: /^Validate/ }).click();
  await page.getByRole("status").getByText("the provider accepts the account").waitFor();
  await account(page, GRACE).getByRole("button", { name: /^Refresh/ }).click();
  await page.getByRole("status").getByText("fresh access token").waitFor();
  dashboard.calm();
});

test("in a small window: it tells the page that opened it, no more than needed, and closes", async () => {
  await forget(LINUS);
  const context = await signedIn();
  const page = await context.newPage();
  const seen = await phases(context);
  await page.goto(`${origin}/integrations`);
  const messages = [];
  await page.exposeFunction("heard", (message) => messages.push(message));
  await page.evaluate(() => {
    window.addEventListener("message", (event) => window.heard({ origin: event.origin, data: event.data }));
  });

  const opening = page.waitForEvent("popup");
  await connectButton(page).click();
  const popup = await opening;
  const closing = popup.waitForEvent("close");
  await consent(popup, LINUS);
  await closing;

  await account(page, LINUS).waitFor();
  await page.getByRole("status").getByText("Integration connected").waitFor();
  const headings = seen.map((phase) => phase.heading);
  assert.ok(headings.includes("Connecting integration…") && headings.includes("Integration connected"), headings.join());
  assert.deepEqual(messages, [{ origin, data: { type: "keyward:connected", provider } }]);
  await dashboard.picture(page, "after-popup");
  dashboard.calm();
});

test("without a script every step is one click more at most", async () => {
  const context = await signedIn({ javaScriptEnabled: false });
  const page = await context.newPage();
  await page.goto(`${origin}/integrations`);
  await connectButton(page).click();
  await consent(page, GRACE);
  await heading(page, "Connecting integration…").waitFor();
  await dashboard.picture(page, "connecting");
  const callback = page.url();
  await page.getByRole("button", { name: "Continue" }).click();
  await heading(page, "Integration connected").waitFor();
  await page.getByRole("link", { name: "Back to integrations" }).click();
  await account(page, GRACE).getByRole("button", { name: /^Validate/ }).click();
  await page.getByRole("status").getByText("the provider accepts the account").waitFor();

  // The callback's address was good once.
  await page.goto(callback);
  await page.getByRole("button", { name: "Continue" }).click();
  await heading(page, "Failed to connect integration").waitFor();
  assert.match(await page.getByRole("main").innerText(), /invalid_state/);
  dashboard.calm();
});

test("no at the provider is a calm page with a way back", async () => {
  const context = await withoutPopups();
  const page = await context.newPage();
  await page.goto(`${origin}/integrations`);
  await connectButton(page).click();
  await consent(page, GRACE, "Deny");
  await heading(page, "Failed to connect integration").waitFor();
  assert.match(await page.getByRole("main").innerText(), /not allowed/);
  assert.doesNotMatch(page.url(), /state=|error=/);
  await dashboard.picture(page, "denied");
  await page.getByRole("link", { name: "Back to integrations" }).click();
  await heading(page, "Integrations").waitFor();
  dashboard.calm();
});

test("no in a small window leaves the reason to be read", async () => {
  const context = await signedIn();
  const page = await context.newPage();
  await page.goto(`${origin}/integrations`);
  const opening = page.waitForEvent("popup");
  await connectButton(page).click();
  const popup = await opening;
  await consent(popup, GRACE, "Deny");
  await heading(popup, "Failed to connect integration").waitFor();
  await page.getByRole("status").getByText("was not connected").waitFor();
  const closing = popup.waitForEvent("close");
  await popup.getByRole("link", { name: "Back to integrations" }).click();
  await closing;
  dashboard.calm();
});

test("a made-up callback connects nothing", async () => {
  const context = await fresh();
  const page = await context.newPage();
  await page.goto(`${origin}/integrations/${provider}/callback?code=stolen&state=guessed`);
  await heading(page, "Failed to connect integration").waitFor();
  assert.match(await page.getByRole("main").innerText(), /invalid_state/);
  dashboard.calm();
});

test("a reconnect link marks the account and offers the button", async () => {
  const { items } = await api("GET", `/accounts?provider=${provider}`);
  const grace = items.find((item) => item.email === GRACE);
  assert.ok(grace, "grace is connected by an earlier test");
  const context = await withoutPopups();
  const page = await context.newPage();
  await page.goto(`${origin}/integrations?reconnect=${grace.id}`);
  const call = page.getByRole("region", { name: `Reconnect ${GRACE}` });
  await call.waitFor();
  await dashboard.picture(page, "reconnect");
  await call.getByRole("button", { name: "Reconnect" }).click();
  await consent(page, LINUS);
  await heading(page, "Failed to connect integration").waitFor();
  assert.match(await page.getByRole("main").innerText(), /another_identity/);

  await page.goto(`${origin}/integrations?reconnect=${grace.id}`);
  await page.getByRole("region", { name: `Reconnect ${GRACE}` }).getByRole("button", { name: "Reconnect" }).click();
  await consent(page, GRACE);
  await heading(page, "Integration connected").waitFor();
  assert.match(await page.getByRole("main").innerText(), /connected again/);
  const afterwards = await api("GET", `/accounts/${grace.id}`);
  assert.deepEqual(
    afterwards.targets.map((target) => target.slug).sort(),
    grace.targets.map((target) => target.slug).sort(),
    "targets keep their names",
  );
  dashboard.calm();
});

test("a link lets somebody without a session connect, once", async () => {
  await forget(LINUS);
  const { authorization_url: url } = await api("GET", `/integrations/${provider}/auth_link?preset=read`);
  assert.match(url, new RegExp(`^${origin}/connect/flow_`));

  const context = await fresh();
  const page = await context.newPage();
  await page.goto(url);
  await heading(page, /^Connect /).waitFor();
  assert.match(await page.getByRole("main").innerText(), /administrator/i);
  await dashboard.picture(page, "link");
  // Looking at it, also twice, opens nothing.
  await page.reload();
  await page.getByRole("button", { name: /^Continue to/ }).click();
  await consent(page, LINUS);
  await heading(page, "Integration connected").waitFor();
  const text = await page.getByRole("main").innerText();
  assert.match(text, /close this page/);
  assert.doesNotMatch(text, new RegExp(LINUS), "what is connected is shown to the signed-in only");
  const { items } = await api("GET", `/accounts?provider=${provider}`);
  assert.ok(items.some((item) => item.email === LINUS && item.status === "connected"));
  dashboard.calm();

  const again = await page.goto(url);
  assert.equal(again.status(), 410);
  await heading(page, "This link is over").waitFor();
  dashboard.calm(/status of 410/);
});

test("a flow can only be finished in the browser that opened it", async () => {
  const { authorization_url: url } = await api("GET", `/integrations/${provider}/auth_link?preset=read`);
  const context = await fresh({ javaScriptEnabled: false });
  const page = await context.newPage();
  await page.goto(url);
  await page.getByRole("button", { name: /^Continue to/ }).click();
  await consent(page, LINUS);
  await heading(page, "Connecting integration…").waitFor();
  const callback = page.url();

  const elsewhere = await (await signedIn()).newPage();
  await elsewhere.goto(callback);
  await heading(elsewhere, "Failed to connect integration").waitFor();
  assert.match(await elsewhere.getByRole("main").innerText(), /invalid_state/);
  dashboard.calm();
});

test("disconnecting is asked about, says what goes, and does it", async () => {
  const context = await signedIn();
  const page = await context.newPage();
  await page.goto(`${origin}/integrations`);
  const linus = account(page, LINUS);
  await linus.getByRole("link", { name: /^Disconnect/ }).click();
  await heading(page, `Disconnect ${LINUS}?`).waitFor();
  await page.getByRole("heading", { name: "Targets that go" }).waitFor();
  await dashboard.picture(page, "disconnect");
  await page.getByRole("link", { name: "Keep it" }).click();
  await linus.waitFor();

  await linus.getByRole("link", { name: /^Disconnect/ }).click();
  await page.getByRole("button", { name: "Disconnect" }).click();
  await page.getByRole("status").getByText("was disconnected").waitFor();
  assert.equal(await account(page, LINUS).count(), 0);
  dashboard.calm();
});
