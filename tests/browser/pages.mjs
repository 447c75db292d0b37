// The other pages: keys and their switches, targets, the audit trail; and getting about with the keyboard.
import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { Dashboard, agentKey, heading, origin } from "./dashboard.mjs";

let dashboard;
let context;
let page;

before(async () => { dashboard = await Dashboard.open(); });
after(async () => { await dashboard?.close(); });
afterEach(async () => { await context?.close(); });

async function open(path, options) {
  context = await dashboard.signedIn(options);
  page = await context.newPage();
  await page.goto(origin + path);
}

test("the keyboard goes through the page in reading order", async () => {
  await open("/integrations");
  const stops = ["Skip to content", "Keyward", "Integrations", "Targets", "Keys", "Audit", "Sign out"];
  for (const stop of stops) {
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent.trim()), stop);
    const ring = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(ring, "none", `${stop} shows that it has the focus`);
  }
  await page.keyboard.press("Tab");
  assert.ok(await page.evaluate(() => document.querySelector("main").contains(document.activeElement)));

  await page.goto(`${origin}/integrations`);
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  dashboard.calm();
});

test("a key is shown once, gets access, and is revoked", async () => {
  await open("/keys");
  await page.getByLabel("Name").fill("Browser <b>test</b>");
  await page.getByLabel("Expires").selectOption("day");
  await page.getByRole("button", { name: "Create key" }).click();
  await heading(page, "Key created").waitFor();
  const key = await page.locator("#key").innerText();
  assert.match(key, /^kw_[A-Za-z0-9_-]{49}$/);
  assert.notEqual(key, agentKey);
  await dashboard.picture(page, "new-key");

  await page.getByRole("link", { name: "Choose what it may use" }).click();
  await heading(page, "Browser <b>test</b>").waitFor();
  assert.ok(!(await page.content()).includes(key), "the key is not shown again");
  const first = page.getByRole("group").filter({ has: page.getByRole("radio", { name: "None" }) }).first();
  assert.ok(await first.getByRole("radio", { name: "None" }).isChecked());
  // The radio itself is invisible over its label; a person clicks the label or uses the arrow keys.
  await first.getByRole("radio", { name: "None" }).focus();
  await page.keyboard.press("ArrowRight");
  await page.getByRole("button", { name: "Save access" }).click();
  await page.getByRole("status").getByText("Access saved").waitFor();
  assert.ok(await first.getByRole("radio", { name: "Read", exact: true }).isChecked());
  await dashboard.picture(page, "access");

  await page.getByRole("button", { name: "Rotate key" }).click();
  await heading(page, "Key rotated").waitFor();
  assert.notEqual(await page.locator("#key").innerText(), key);
  await page.getByRole("link", { name: "Choose what it may use" }).click();
  await page.getByText("Revoke this key…").click();
  await page.getByRole("button", { name: "Revoke key" }).click();
  await page.getByRole("status").getByText("was revoked").waitFor();
  await page.getByRole("row", { name: /Browser/ }).first().getByText("Revoked").waitFor();
  dashboard.calm();
});

test("a static target is added and deleted; managed ones can't be", async () => {
  await open("/targets");
  const managed = page.getByRole("listitem").filter({ hasText: "Managed by" }).first();
  await managed.waitFor();
  assert.equal(await managed.getByText("Delete").count(), 0);

  await page.getByLabel("Slug").fill("browser-crm");
  await page.getByLabel("Base URL").fill("https://api.example.com/v2");
  await page.getByRole("radio", { name: "Header" }).check();
  await page.getByLabel("Header name").fill("X-Api-Key");
  await page.getByLabel("Header value").fill("canary-1f7a");
  assert.ok(!(await page.getByLabel("Token", { exact: true }).isVisible()), "only the chosen kind's fields are shown");
  await page.getByRole("button", { name: "Add target" }).click();
  await page.getByRole("status").getByText("Target added").waitFor();
  const added = page.getByRole("listitem").filter({ hasText: "browser-crm" });
  await added.getByText("https://api.example.com/v2").waitFor();
  assert.ok(!(await page.content()).includes("canary-1f7a"), "the secret does not come back");
  await dashboard.picture(page, "targets");

  await added.getByText("Delete browser-crm…").click();
  await added.getByRole("button", { name: "Delete target" }).click();
  await page.getByRole("status").getByText("Target deleted").waitFor();
  assert.equal(await page.getByText("browser-crm").count(), 0);
  dashboard.calm();
});

test("the audit trail is there and can be filtered", async () => {
  await open("/audit");
  assert.ok((await page.getByRole("row").count()) > 1);
  await dashboard.picture(page, "audit");
  await page.getByLabel("Status").fill("599");
  await page.getByRole("button", { name: "Filter" }).click();
  await page.getByText("No record matches").waitFor();
  dashboard.calm();
});

test("small and dark screens hold every page without a sideways scroll", async () => {
  for (const options of [{ viewport: { width: 360, height: 720 } }, { colorScheme: "dark" }]) {
    for (const path of ["/integrations", "/targets", "/keys", "/audit"]) {
      await open(path, options);
      const sideways = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
      assert.ok(!sideways, `${path} at ${JSON.stringify(options)}`);
      await dashboard.picture(page, `${path.slice(1)}-${options.colorScheme ?? "small"}`);
      await context.close();
    }
  }
  dashboard.calm();
});

test("pages say how they must be treated", async () => {
  for (const path of ["/login", "/integrations", "/keys", "/nope"]) {
    const reply = await fetch(origin + path, { redirect: "manual" });
    assert.equal(reply.headers.get("x-content-type-options"), "nosniff", path);
  }
  const reply = await fetch(`${origin}/login`);
  const policy = reply.headers.get("content-security-policy");
  assert.match(policy, /default-src 'none'/);
  assert.match(policy, /frame-ancestors 'none'/);
  assert.doesNotMatch(policy, /unsafe/);
  assert.equal(reply.headers.get("x-frame-options"), "DENY");
  assert.equal(reply.headers.get("cache-control"), "no-store");
});
