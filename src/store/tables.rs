//! Every table and column, for work that treats all of them alike: moving a store, re-sealing it. A test holds this list
//! against the real schema of both databases, so a migration can't forget it.

use self::Kind::{Bigint, Bytes, Sealed, Text};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Bigint,
    /// Hashes, facts, the ids of audit records.
    Bytes,
    /// A value that only the vault opens. Its place is table, primary key and column.
    Sealed,
}

/// One table.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// How many of the first columns make the primary key.
    pub(super) key: usize,
    pub(super) columns: &'static [(&'static str, Kind)],
}

impl Table {
    pub(super) fn key_columns(&self) -> String {
        names(&self.columns[..self.key])
    }

    pub(super) fn all_columns(&self) -> String {
        names(self.columns)
    }
}

fn names(columns: &[(&str, Kind)]) -> String {
    columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// All of them, each after those that it refers to.
pub(super) const TABLES: &[Table] = &[
    Table { name: "facts", key: 1, columns: &[("name", Text), ("value", Bytes)] },
    Table { name: "organizations", key: 1, columns: &[("id", Text), ("name", Text), ("created_at", Bigint)] },
    Table { name: "policy_revision", key: 1, columns: &[("single", Bigint), ("revision", Bigint)] },
    Table {
        name: "keys",
        key: 1,
        columns: &[
            ("id", Text),
            ("organization", Text),
            ("name", Text),
            ("hash", Bytes),
            ("prefix", Text),
            ("expires_at", Bigint),
            ("allowed_ips", Text),
            ("rate_limit", Text),
            ("previous_hash", Bytes),
            ("previous_until", Bigint),
            ("created_at", Bigint),
            ("last_used_at", Bigint),
            ("revoked_at", Bigint),
        ],
    },
    Table {
        name: "accounts",
        key: 1,
        columns: &[
            ("id", Text),
            ("organization", Text),
            ("provider", Text),
            ("subject", Text),
            ("email", Text),
            ("display_name", Text),
            ("status", Text),
            ("reason", Text),
            ("validity", Text),
            ("checked_at", Bigint),
            ("scopes", Text),
            ("missing_scopes", Text),
            ("preset", Text),
            ("access_token", Sealed),
            ("refresh_token", Sealed),
            ("access_expires_at", Bigint),
            ("access_ttl_ms", Bigint),
            ("refresh_expires_at", Bigint),
            ("owner", Text),
            ("captures", Text),
            ("generation", Bigint),
            ("lease_owner", Text),
            ("lease_until", Bigint),
            ("refresh_started_at", Bigint),
            ("refresh_failures", Bigint),
            ("next_attempt_at", Bigint),
            ("unknown_since", Bigint),
            ("standing_at", Bigint),
            ("reconnect_soon_at", Bigint),
            ("created_at", Bigint),
            ("updated_at", Bigint),
            ("removed_at", Bigint),
        ],
    },
    Table {
        name: "token_candidates",
        key: 1,
        columns: &[
            ("id", Text),
            ("account", Text),
            ("token", Sealed),
            ("received_at", Bigint),
            ("successor_of", Bigint),
        ],
    },
    Table {
        name: "targets",
        key: 1,
        columns: &[
            ("id", Text),
            ("organization", Text),
            ("slug", Text),
            ("name", Text),
            ("kind", Text),
            ("account", Text),
            ("provider", Text),
            ("capability", Text),
            ("base_url", Text),
            ("credential_kind", Text),
            ("credential", Sealed),
            ("fence", Text),
            ("protection", Text),
            ("transport", Text),
            ("created_at", Bigint),
            ("updated_at", Bigint),
        ],
    },
    Table {
        name: "grants",
        key: 2,
        columns: &[("agent_key", Text), ("target", Text), ("access", Text), ("created_at", Bigint)],
    },
    Table {
        name: "flows",
        key: 1,
        columns: &[
            ("id", Text),
            ("organization", Text),
            ("provider", Text),
            ("capabilities", Text),
            ("preset", Text),
            ("account", Text),
            ("inputs", Text),
            ("owner", Text),
            ("actor", Text),
            ("state_hash", Bytes),
            ("cookie_hash", Bytes),
            ("verifier", Sealed),
            ("created_at", Bigint),
            ("expires_at", Bigint),
        ],
    },
    Table {
        name: "revocations",
        key: 1,
        columns: &[
            ("id", Text),
            ("organization", Text),
            ("account", Text),
            ("provider", Text),
            ("subject", Text),
            ("captures", Text),
            ("token_kind", Text),
            ("token", Sealed),
            ("attempts", Bigint),
            ("next_at", Bigint),
            ("created_at", Bigint),
        ],
    },
    Table { name: "sessions", key: 1, columns: &[("hash", Bytes), ("created_at", Bigint), ("expires_at", Bigint)] },
    Table {
        name: "audit",
        key: 3,
        columns: &[
            ("organization", Bytes),
            ("slice", Bigint),
            ("id", Bytes),
            ("at", Bigint),
            ("series", Bigint),
            ("request", Bytes),
            ("path", Text),
            ("status", Bigint),
            ("code", Text),
            ("bytes_in", Bigint),
            ("bytes_out", Bigint),
            ("duration_us", Bigint),
            ("detail", Text),
        ],
    },
    Table {
        name: "audit_series",
        key: 2,
        columns: &[
            ("slice", Bigint),
            ("series", Bigint),
            ("actor", Text),
            ("action", Text),
            ("agent_key", Bytes),
            ("target", Text),
            ("account", Bytes),
            ("method", Text),
        ],
    },
    Table { name: "audit_about", key: 2, columns: &[("subject", Bigint), ("slice", Bigint)] },
];

/// Where sealed values stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct SealedColumn {
    pub(super) table: &'static str,
    /// The column that names the row.
    pub(super) key: &'static str,
    pub(super) column: &'static str,
    /// In this row alone; `None`: in all of them.
    pub(super) only: Option<&'static str>,
}

/// The fact that tells whether the sealing keys are the store's. It is no column of its own: other facts are not sealed.
pub(super) const CHECK: SealedColumn = {
    let place = crate::vault::CHECK_PLACE;
    SealedColumn { table: place.table, key: "name", column: place.column, only: Some(place.row) }
};

/// Every column of sealed values, [`CHECK`] left out.
pub(super) fn sealed_columns() -> impl Iterator<Item = SealedColumn> {
    TABLES.iter().flat_map(|table| {
        let sealed = table.columns.iter().filter(|(_, kind)| *kind == Sealed);
        sealed.map(|(column, _)| SealedColumn { table: table.name, key: table.columns[0].0, column, only: None })
    })
}
