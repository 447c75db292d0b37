//! Behaviour through real sockets. One file per area; one binary, so that there is one link step.

mod admin_api;
mod audit;
mod bodies;
mod browser;
mod cli;
mod connect;
mod disconnect;
mod drain;
mod harness;
mod headers;
mod proxy;
mod refresh;
mod secrecy;
mod token_answers;
mod two_instances;
