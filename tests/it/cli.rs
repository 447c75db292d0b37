//! The binary: exit codes, configuration, the command line through the admin API.
