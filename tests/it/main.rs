//! Behaviour through real sockets. One file per area; one binary, so that there is one link step.

mod harness;
