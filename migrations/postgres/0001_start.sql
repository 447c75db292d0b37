-- Times are milliseconds since 1970, lists and maps are JSON text, sealed values and hashes are bytes.
-- The twin of this file is migrations/sqlite/0001_start.sql: same tables, same columns.
-- Text that is sorted or compared by page sorts by its bytes, as it does in SQLite.

create table facts (
    name text collate "C" primary key not null,
    value bytea not null
);

create table organizations (
    id text collate "C" primary key not null,
    name text collate "C" not null unique,
    created_at bigint not null
);

-- One row. Whoever changes what decides a request raises it first, so such changes happen one after another.
create table policy_revision (
    single bigint primary key not null check (single = 1),
    revision bigint not null
);
insert into policy_revision (single, revision) values (1, 0);

create table keys (
    id text collate "C" primary key not null,
    organization text collate "C" not null references organizations (id),
    name text collate "C" not null,
    hash bytea not null unique,
    prefix text not null,
    expires_at bigint,
    allowed_ips text not null,
    rate_limit text,
    previous_hash bytea,
    previous_until bigint,
    created_at bigint not null,
    last_used_at bigint,
    revoked_at bigint
);
create index keys_by_organization on keys (organization, id);

create table accounts (
    id text collate "C" primary key not null,
    organization text collate "C" not null references organizations (id),
    provider text not null,
    subject text not null,
    email text,
    display_name text,
    status text not null,
    reason text,
    validity text not null,
    checked_at bigint,
    scopes text not null,
    missing_scopes text not null,
    preset text not null,
    access_token bytea,
    refresh_token bytea,
    access_expires_at bigint,
    access_ttl_ms bigint,
    refresh_expires_at bigint,
    owner text,
    captures text not null,
    generation bigint not null,
    -- Who may refresh now, until when, and since when a refresh has been under way without a stored result.
    lease_owner text,
    lease_until bigint,
    refresh_started_at bigint,
    -- Refreshes that failed in passing since the last that did not, before when there is no further one, and since when
    -- the provider has said nothing but what nobody understands.
    refresh_failures bigint not null default 0,
    next_attempt_at bigint,
    unknown_since bigint,
    -- When the account last went to or came from `disconnected`: what other instances look for.
    standing_at bigint,
    -- When people were told that the refresh token itself ends soon.
    reconnect_soon_at bigint,
    created_at bigint not null,
    updated_at bigint not null,
    removed_at bigint,
    check ((status = 'connected' and reason is null) or (status <> 'connected' and reason is not null)),
    check (removed_at is null or (access_token is null and refresh_token is null))
);
create unique index accounts_by_identity on accounts (organization, provider, subject) where removed_at is null;
create index accounts_by_unresolved on accounts (refresh_started_at) where refresh_started_at is not null;
create index accounts_by_trouble on accounts (next_attempt_at) where status = 'degraded' and removed_at is null;
create index accounts_by_standing on accounts (standing_at) where standing_at is not null;
create index accounts_by_idleness on accounts (access_expires_at) where status = 'connected' and removed_at is null;
create index accounts_by_refresh_end on accounts (refresh_expires_at) where refresh_expires_at is not null;
create index accounts_by_organization on accounts (organization, id) where removed_at is null;

-- Refresh tokens that were received and could not become the current one; tried before an account is given up. One that
-- came in place of the current one (beside an access token of no use) is tried before it, as long as the account's
-- generation is the one named here.
create table token_candidates (
    id text collate "C" primary key not null,
    account text collate "C" not null references accounts (id),
    token bytea not null,
    received_at bigint not null,
    successor_of bigint
);
create index token_candidates_by_account on token_candidates (account, id);

create table targets (
    id text collate "C" primary key not null,
    organization text collate "C" references organizations (id),
    slug text collate "C" not null,
    name text collate "C" not null,
    kind text not null,
    account text collate "C" references accounts (id),
    provider text,
    capability text collate "C",
    base_url text,
    credential_kind text,
    credential bytea,
    fence text,
    protection text,
    transport text,
    created_at bigint not null,
    updated_at bigint not null,
    check ((kind = 'system') = (organization is null))
);
create unique index targets_by_slug on targets (organization, slug) where organization is not null;
create unique index targets_by_system_slug on targets (slug) where organization is null;
create unique index targets_by_account on targets (account, capability) where account is not null;
create index targets_by_organization on targets (organization, id);

create table grants (
    agent_key text collate "C" not null references keys (id) on delete cascade,
    target text collate "C" not null references targets (id) on delete cascade,
    access text not null,
    created_at bigint not null,
    primary key (agent_key, target)
);
create index grants_by_target on grants (target);

create table flows (
    id text collate "C" primary key not null,
    organization text collate "C" not null references organizations (id),
    provider text not null,
    capabilities text not null,
    preset text not null,
    account text collate "C",
    inputs text not null,
    owner text,
    actor text not null,
    state_hash bytea unique,
    cookie_hash bytea,
    verifier bytea,
    created_at bigint not null,
    expires_at bigint not null
);
create index flows_by_end on flows (expires_at);

create table revocations (
    id text collate "C" primary key not null,
    organization text collate "C" not null references organizations (id),
    account text collate "C" not null references accounts (id),
    provider text not null,
    subject text not null,
    captures text not null,
    token_kind text not null,
    token bytea not null,
    attempts bigint not null,
    next_at bigint not null,
    created_at bigint not null
);
create index revocations_by_due on revocations (next_at);

create table sessions (
    hash bytea primary key not null,
    created_at bigint not null,
    expires_at bigint not null
);
create index sessions_by_end on sessions (expires_at);

-- No references: a record outlives what it is about, and may be about something unknown. Ids are their 16 bytes here, for
-- this table has the most rows by far; an empty organization is nobody's. A slice is eight seconds of the ids' time. No
-- actor: the key that asked.
create table audit (
    organization bytea not null,
    slice bigint not null,
    id bytea not null,
    at bigint not null,
    actor text,
    action text not null,
    request bytea,
    agent_key bytea,
    target text,
    account bytea,
    method text,
    path text,
    status bigint,
    code text,
    bytes_in bigint,
    bytes_out bigint,
    duration_us bigint,
    detail text,
    primary key (organization, slice, id)
);
-- Instead of an index of records by key, target and account, which would cost more than the records: in which slices each
-- of them occurs. Says where to look; may name a slice that holds nothing (any more).
create table audit_about (
    subject bigint not null,
    slice bigint not null,
    primary key (subject, slice)
);
create index audit_about_by_slice on audit_about (slice);
