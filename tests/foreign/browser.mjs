// As much of a browser as these pages need: cookies, redirects, and the first form of a page. No script runs, so what
// works here works for people without scripts.
import assert from "node:assert/strict";

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

const text = (html) => html
  .replace(/&#x([0-9a-f]+);/gi, (_, hex) => String.fromCodePoint(Number.parseInt(hex, 16)))
  .replace(/&#(\d+);/g, (_, number) => String.fromCodePoint(Number(number)))
  .replace(/&(\w+);/g, (whole, name) => ENTITIES[name] ?? whole);

const attribute = (tag, name) => {
  const found = new RegExp(`\\s${name}="([^"]*)"`, "i").exec(tag);
  return found ? text(found[1]) : undefined;
};

/** A page, or (`stopped`) the address at which the browser was told to stop. */
class Page {
  constructor(url, status, html) {
    this.url = url;
    this.status = status;
    this.html = html;
  }

  get title() {
    return text(/<h1[^>]*>([^<]*)/i.exec(this.html)?.[1] ?? "").trim();
  }

  /** Address and fields of the first form that is sent by POST. */
  form() {
    const found = /<form\b[^>]*method="post"[^>]*>([\s\S]*?)<\/form>/i.exec(this.html);
    assert.ok(found, `a form on ${this.url}:\n${this.html}`);
    const fields = new URLSearchParams();
    for (const [input] of found[1].matchAll(/<input\b[^>]*>/gi)) {
      const name = attribute(input, "name");
      if (name) fields.append(name, attribute(input, "value") ?? "");
    }
    return { action: new URL(attribute(found[0].slice(0, found[0].indexOf(">") + 1), "action"), this.url), fields };
  }
}

export class Browser {
  #cookies = new Map();

  /** Cookies know hosts and paths, but no ports: both servers are 127.0.0.1, and see each other's as in a browser. */
  #cookieHeader(url) {
    const fits = ({ host, path }) =>
      host === url.hostname
      && (url.pathname === path || url.pathname.startsWith(path.endsWith("/") ? path : `${path}/`));
    return [...this.#cookies.values()].filter(fits).map(({ name, value }) => `${name}=${value}`).join("; ");
  }

  #keep(url, lines) {
    for (const line of lines) {
      const [pair, ...attributes] = line.split(";").map((part) => part.trim());
      const [name, value] = [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)];
      const given = Object.fromEntries(attributes.map((part) => {
        const [key, content = ""] = part.split("=");
        return [key.toLowerCase(), content];
      }));
      const path = given.path || "/";
      const key = `${url.hostname} ${path} ${name}`;
      const over = given["max-age"] === "0" || (given.expires && Date.parse(given.expires) <= Date.now());
      if (over) this.#cookies.delete(key);
      else this.#cookies.set(key, { host: url.hostname, path, name, value });
    }
  }

  /** Opens an address and follows redirects, but not to an address that begins with `stop`: that one is the result. */
  async open(address, { form, from, stop } = {}) {
    let url = new URL(address);
    let body = form;
    for (let hops = 0; hops < 20; hops += 1) {
      if (stop && url.href.startsWith(stop)) return new Page(url, 0, "");
      const headers = { accept: "text/html" };
      const cookie = this.#cookieHeader(url);
      if (cookie) headers.cookie = cookie;
      if (body) headers.origin = from.origin;
      const answer = await fetch(url, { method: body ? "POST" : "GET", body, headers, redirect: "manual" });
      this.#keep(url, answer.headers.getSetCookie());
      const html = await answer.text();
      if (answer.status < 300 || answer.status >= 400) return new Page(url, answer.status, html);
      url = new URL(answer.headers.get("location"), url);
      body = undefined;
    }
    throw new Error(`too many redirects, the last to ${url}`);
  }

  /** Fills in and sends a page's form. */
  async submit(page, values = {}, options = {}) {
    const { action, fields } = page.form();
    for (const [name, value] of Object.entries(values)) fields.set(name, value);
    return this.open(action, { ...options, form: fields, from: page.url });
  }
}
