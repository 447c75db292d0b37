//! The sandbox over real sockets, as a client sees it.

mod client;
mod oauth;
mod trouble;
mod upstream;
