//! The connect flow from outside.
