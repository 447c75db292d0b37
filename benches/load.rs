//! Both ends of a measurement, on bare sockets so that they cost little: an origin that answers every request with the same
//! 1 KiB, and a client that keeps a number of connections busy.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

/// What the origin answers, without the head.
const BODY: usize = 1024;

/// Starts an origin on a thread of its own, for the rest of the process.
pub fn origin() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    on_a_thread("bench-origin", async move {
        let listener = TcpListener::from_std(listener).unwrap();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(answer(tcp));
        }
    });
    address
}

async fn answer(mut tcp: TcpStream) {
    let _ = tcp.set_nodelay(true);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {BODY}\r\n\r\n");
    let whole = [head.as_bytes(), &vec![b'x'; BODY]].concat();
    let mut seen = Vec::with_capacity(4096);
    while matches!(tcp.read_buf(&mut seen).await, Ok(1..)) {
        while let Some(end) = memchr::memmem::find(&seen, b"\r\n\r\n") {
            seen.drain(..end + 4);
            if tcp.write_all(&whole).await.is_err() {
                return;
            }
        }
    }
}

/// One connection with one request after the other on it.
pub struct Client {
    tcp: TcpStream,
    request: Vec<u8>,
    seen: Vec<u8>,
}

impl Client {
    /// Connects; nothing is asked yet.
    pub async fn connect(address: SocketAddr, request: &str) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self { tcp, request: request.as_bytes().to_vec(), seen: Vec::with_capacity(4096) }
    }

    /// One exchange, which must bring the origin's answer.
    pub async fn ask(&mut self) {
        self.tcp.write_all(&self.request).await.unwrap();
        self.seen.clear();
        loop {
            assert_ne!(self.tcp.read_buf(&mut self.seen).await.unwrap(), 0, "the connection was closed");
            if let Some(end) = memchr::memmem::find(&self.seen, b"\r\n\r\n") {
                assert!(self.seen.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.seen));
                if self.seen.len() >= end + 4 + BODY {
                    return;
                }
            }
        }
    }
}

/// What a client saw.
pub struct Seen {
    sorted_ns: Vec<u64>,
    elapsed: Duration,
}

impl Seen {
    pub fn requests(&self) -> usize {
        self.sorted_ns.len()
    }

    pub fn per_second(&self) -> f64 {
        self.sorted_ns.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// A latency in µs; 0.5 is the median.
    pub fn micros(&self, quantile: f64) -> f64 {
        let at = (self.sorted_ns.len() as f64 * quantile) as usize;
        self.sorted_ns[at.min(self.sorted_ns.len() - 1)] as f64 / 1e3
    }
}

/// Keeps `connections` busy for `span`, all on one thread.
pub fn load(address: SocketAddr, request: &str, connections: usize, span: Duration) -> Seen {
    let request = request.to_owned();
    on_a_thread("bench-load", async move {
        let mut clients = Vec::new();
        for _ in 0..connections {
            let mut client = Client::connect(address, &request).await;
            client.ask().await;
            clients.push(client);
        }
        let start = Instant::now();
        let tasks: Vec<_> =
            clients.into_iter().map(|client| tokio::task::spawn_local(keep_busy(client, span))).collect();
        let mut sorted_ns = Vec::new();
        for task in tasks {
            sorted_ns.extend(task.await.unwrap());
        }
        let elapsed = start.elapsed();
        sorted_ns.sort_unstable();
        Seen { sorted_ns, elapsed }
    })
    .join()
    .unwrap()
}

async fn keep_busy(mut client: Client, span: Duration) -> Vec<u64> {
    let mut took = Vec::with_capacity(100_000);
    let start = Instant::now();
    let mut before = start;
    while before - start < span {
        client.ask().await;
        let now = Instant::now();
        took.push(u64::try_from((now - before).as_nanos()).unwrap());
        before = now;
    }
    took
}

/// Runs a future on a thread with a runtime of its own.
pub fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl Future<Output = T> + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = move || LocalSet::new().block_on(&runtime, work);
    std::thread::Builder::new().name(name.to_owned()).spawn(run).unwrap()
}
