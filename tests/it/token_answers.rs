//! Each answer of a token endpoint, and what becomes of the account.
