//! The admin API: every route, every code, the shape of every answer.
