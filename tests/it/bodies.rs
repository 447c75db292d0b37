//! Bodies both ways: streamed, binary-safe, cut where the other side was cut.
