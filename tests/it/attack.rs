//! What hostile agents send and hostile upstreams answer, byte for byte, through the real listener. Tables: each row says
//! what goes in, what is answered, whether the connection lives on, and every byte that the upstream saw.

mod frames;
mod heads;
mod kit;
mod properties;
mod survival;
mod upstreams;
