//! Behaviour through real sockets. One file per area; one binary, so that there is one link step.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod admin_api;
mod attack;
mod audit;
mod bodies;
mod browser;
mod cli;
mod connect;
mod crash;
mod disconnect;
mod drain;
mod harness;
mod headers;
mod http2;
mod intents;
mod limits;
mod maintenance;
mod model;
mod proxy;
mod reconnect;
mod reflect;
mod refresh;
mod secrecy;
mod store_failure;
mod tls;
mod tls_kit;
mod token_answers;
mod token_kit;
mod two_instances;
mod upstreams;
mod validate;
mod websocket;
mod wire;
mod withdrawn;
