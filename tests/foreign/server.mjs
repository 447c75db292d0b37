// An OAuth server that none of us wrote (oidc-provider) with refresh token rotation and reuse detection on, and a little
// API that asks it whether a token is good. Prints its address as one line; ends with SIGTERM.
//
//   FOREIGN_CLIENTS      [{"id": …, "secret": …, "auth": "client_secret_basic", "redirect_uri": …}, …]
//   FOREIGN_ACCESS_TTL   life of access tokens in seconds (4)
//
// Beside the library's own endpoints, for tests:
//   GET  /__counts       what happened so far, from the library's events
//   POST /__end_access   ends all access tokens early, as a provider may at any time
//   POST /__revoke       revokes all grants, as their owners could in their settings
import { generateKeyPairSync, randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import Provider from "oidc-provider";

const accessTtl = Number(process.env.FOREIGN_ACCESS_TTL ?? 4);
const clients = JSON.parse(process.env.FOREIGN_CLIENTS ?? "[]");

const server = createServer();
server.keepAliveTimeout = 120_000;
server.listen(0, "127.0.0.1");
await once(server, "listening");
const issuer = `http://127.0.0.1:${server.address().port}`;

const key = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" });

const provider = new Provider(issuer, {
  clients: clients.map(({ id, secret, auth, redirect_uri }) => ({
    client_id: id,
    client_secret: secret,
    token_endpoint_auth_method: auth,
    redirect_uris: [redirect_uri],
    grant_types: ["authorization_code", "refresh_token"],
    response_types: ["code"],
    id_token_signed_response_alg: "ES256",
  })),
  jwks: { keys: [{ ...key, alg: "ES256", use: "sig", kid: randomUUID() }] },
  cookies: { keys: [randomBytes(32).toString("hex")] },
  scopes: ["openid", "offline_access", "notes.read", "notes.write"],
  claims: { openid: ["sub"], email: ["email"], profile: ["name"] },
  // The sign-in page takes any name; that name is the person.
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.com`, name: id[0].toUpperCase() + id.slice(1) }),
  }),
  pkce: { required: () => true },
  rotateRefreshToken: true,
  // The default lets a token live 15 s longer than it was said to. Without it the second in which a token was made counts
  // as a whole one: a token of 4 s may end after 3.
  clockTolerance: 0,
  features: { devInteractions: { enabled: true }, revocation: { enabled: true } },
  ttl: { AccessToken: accessTtl, RefreshToken: 86_400, Grant: 86_400, Session: 3_600, Interaction: 600, IdToken: 600 },
});

const counts = {
  token_calls: {}, // by grant type
  errors: {}, // of the token endpoint, by code
  rotations: 0,
  reuse: 0,
  grants_revoked: 0,
  revocation_calls: 0,
  server_errors: 0,
  api: {}, // by status
};
const bump = (where, name) => { where[name] = (where[name] ?? 0) + 1; };
const access = new Set();
const grants = new Set();

provider.use(async (ctx, next) => {
  await next();
  if (ctx.oidc?.route === "token") bump(counts.token_calls, ctx.oidc.params?.grant_type ?? "none");
  if (ctx.oidc?.route === "revocation") counts.revocation_calls += 1;
});
provider.on("refresh_token.consumed", () => { counts.rotations += 1; });
provider.on("grant.error", (ctx, error) => {
  bump(counts.errors, error.error);
  if (error.error_detail === "refresh token already used") counts.reuse += 1;
  console.error(`token endpoint: ${error.error} (${error.error_detail ?? error.error_description})`);
});
provider.on("grant.revoked", () => { counts.grants_revoked += 1; });
provider.on("server_error", (ctx, error) => {
  counts.server_errors += 1;
  console.error(error);
});
provider.on("access_token.saved", (token) => {
  access.add(token.jti);
  grants.add(token.grantId);
});
provider.on("access_token.destroyed", (token) => access.delete(token.jti));

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** `GET /api/whoami`, `POST /api/notes`: for whoever shows a token that the provider knows. */
async function api(request, path) {
  const [kind, value] = (request.headers.authorization ?? "").split(" ");
  const sent = await body(request);
  const token = kind?.toLowerCase() === "bearer" ? await provider.AccessToken.find(value) : undefined;
  if (!token) return [401, { error: "invalid_token" }];
  const scope = request.method === "GET" ? "notes.read" : "notes.write";
  if (!token.scopes.has(scope)) return [403, { error: "insufficient_scope", scope }];
  if (request.method === "GET" && path === "/api/whoami") {
    return [200, { sub: token.accountId, client: token.clientId, cookie: request.headers.cookie ?? null }];
  }
  if (request.method === "POST" && path === "/api/notes") return [200, { sub: token.accountId, text: sent.toString() }];
  return [404, { error: "not_found" }];
}

async function control(request, path) {
  if (request.method === "GET" && path === "/__counts") return [200, counts];
  if (request.method === "POST" && path === "/__end_access") {
    for (const id of access) await (await provider.AccessToken.find(id))?.destroy();
    access.clear();
    return [200, {}];
  }
  if (request.method === "POST" && path === "/__revoke") {
    for (const id of grants) {
      await provider.AccessToken.revokeByGrantId(id);
      await provider.RefreshToken.revokeByGrantId(id);
      await (await provider.Grant.find(id))?.destroy();
    }
    grants.clear();
    return [200, {}];
  }
  return [404, {}];
}

function answer(response, [status, value]) {
  const headers = { "content-type": "application/json" };
  if (status === 401) headers["www-authenticate"] = 'Bearer error="invalid_token"';
  response.writeHead(status, headers).end(JSON.stringify(value));
}

const library = provider.callback();
server.on("request", async (request, response) => {
  const { pathname } = new URL(request.url, issuer);
  try {
    if (pathname.startsWith("/api/")) {
      const answered = await api(request, pathname);
      bump(counts.api, answered[0]);
      answer(response, answered);
    } else if (pathname.startsWith("/__")) {
      answer(response, await control(request, pathname));
    } else {
      await library(request, response);
    }
  } catch (error) {
    counts.server_errors += 1;
    console.error(error);
    response.destroy();
  }
});

process.once("SIGTERM", () => {
  server.close();
  server.closeAllConnections();
});
console.log(issuer);
