//! The one way out: resolve, check **every** address, connect to a checked one. What is checked is what is dialled, so a
//! name that changes its mind between the two (DNS rebinding) gains nothing; IP literals take the same way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

/// Where connections may go: anywhere public, and the private ranges that the operator names.
#[derive(Debug, Clone)]
pub struct Guard {
    allow: Vec<IpNet>,
}

/// Why there is no connection. Nothing was sent in any of these.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("the name could not be resolved")]
    Resolve,
    /// The address is private, loopback, link-local or a metadata service's.
    #[error("the address {0} is not one that may be reached")]
    Refused(IpAddr),
    /// Refused or unreachable.
    #[error("connecting failed: {0}")]
    Connect(#[source] std::io::Error),
    /// Nobody answered in time.
    #[error("connecting took too long")]
    Timeout,
}

impl Guard {
    /// With these private ranges allowed.
    #[must_use]
    pub fn new(allow: Vec<IpNet>) -> Self {
        Self { allow }
    }

    /// Whether an address may be reached.
    ///
    /// # Errors
    /// [`DialError::Refused`].
    pub fn check(&self, address: IpAddr) -> Result<(), DialError> {
        let permitted = match address {
            IpAddr::V4(v4) => self.permits_v4(v4),
            IpAddr::V6(v6) => self.permits_v6(v6),
        };
        if permitted { Ok(()) } else { Err(DialError::Refused(address)) }
    }

    /// Connects to `host` (a name or an IP literal without brackets), with `TCP_NODELAY`.
    ///
    /// One refused address refuses the name: a name that points both outside and inside is an attack or a mistake, and
    /// which address gets dialled must not depend on the order of a DNS answer.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, host: &str, port: u16, timeout: Duration) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + timeout;
        let addresses = resolve(host, port, deadline).await?;
        for address in &addresses {
            self.check(address.ip())?;
        }
        connect(&addresses, deadline).await
    }

    fn permits_v4(&self, v4: Ipv4Addr) -> bool {
        !METADATA_V4.contains(&v4) && (is_public_v4(v4) || self.names(IpAddr::V4(v4)))
    }

    /// An IPv6 address that carries IPv4 ones leads to those, so they are judged too: naming the carrier's range in
    /// `allow` opens it for addresses that could be reached without it, and a named IPv4 range for all of its forms.
    fn permits_v6(&self, v6: Ipv6Addr) -> bool {
        if METADATA_V6.contains(&v6) {
            return false;
        }
        let carried = carried_v4(v6);
        if carried.is_empty() {
            return is_public_v6(v6) || self.names(IpAddr::V6(v6));
        }
        if carried.iter().any(|v4| METADATA_V4.contains(v4)) {
            return false;
        }
        carried.iter().all(|v4| self.names(IpAddr::V4(*v4)))
            || self.names(IpAddr::V6(v6)) && carried.iter().all(|v4| self.permits_v4(*v4))
    }

    fn names(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|net| net.contains(&address))
    }
}

async fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, DialError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = timeout_at(deadline, lookup_host((host, port)))
        .await
        .map_err(|_| DialError::Timeout)?
        .map_err(|_| DialError::Resolve)?;
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(DialError::Resolve) } else { Ok(addresses) }
}

/// Tries one address after the other. Each gets an equal share of what time is left, so that a silent first one (IPv6
/// without a route, often) leaves time for the next.
async fn connect(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, DialError> {
    let mut last = DialError::Timeout;
    for (tried, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = now + deadline.saturating_duration_since(now) / left;
        match timeout_at(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(DialError::Connect)?;
                return Ok(stream);
            }
            Ok(Err(cause)) => last = DialError::Connect(cause),
            Err(_) => last = DialError::Timeout,
        }
    }
    Err(last)
}

/// Metadata services hand credentials of the machine to whoever asks. No `allow` opens these. Names such as
/// `metadata.google.internal` need no entry: what they resolve to has one.
const METADATA_V4: [Ipv4Addr; 8] = [
    Ipv4Addr::new(169, 254, 169, 254), // AWS, Google, Azure, Oracle, DigitalOcean, OpenStack…
    Ipv4Addr::new(169, 254, 169, 253), // AWS: DNS
    Ipv4Addr::new(169, 254, 170, 2),   // AWS: task roles of ECS
    Ipv4Addr::new(169, 254, 170, 23),  // AWS: pod identity of EKS
    Ipv4Addr::new(169, 254, 0, 23),    // Tencent
    Ipv4Addr::new(169, 254, 42, 42),   // Scaleway
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba
    Ipv4Addr::new(168, 63, 129, 16),   // Azure: a public address that only a virtual machine sees
];

const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), // AWS
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),  // AWS: pod identity of EKS
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),  // Google
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),   // Scaleway
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// What is not the public Internet (IANA's special-purpose registry).
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),       // "this network"; 0.0.0.0 reaches loopback
    v4(10, 0, 0, 0, 8),      // private (RFC 1918)
    v4(100, 64, 0, 0, 10),   // carrier-grade NAT (RFC 6598)
    v4(127, 0, 0, 0, 8),     // loopback
    v4(169, 254, 0, 0, 16),  // link-local
    v4(172, 16, 0, 0, 12),   // private
    v4(192, 0, 0, 0, 24),    // protocol assignments
    v4(192, 0, 2, 0, 24),    // documentation
    v4(192, 88, 99, 0, 24),  // 6to4 relays
    v4(192, 168, 0, 0, 16),  // private
    v4(198, 18, 0, 0, 15),   // benchmarks
    v4(198, 51, 100, 0, 24), // documentation
    v4(203, 0, 113, 0, 24),  // documentation
    v4(224, 0, 0, 0, 4),     // multicast
    v4(240, 0, 0, 0, 4),     // reserved, and broadcast
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    !SPECIAL_V4.iter().any(|net| net.contains(&address))
}

/// All that is handed out as global unicast; loopback, ULA, link-local, multicast and the rest are outside.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);

/// Special inside of it.
const SPECIAL_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 0, 23),     // protocol assignments: Teredo, benchmarks, ORCHID…
    v6(0x2001, 0xdb8, 0, 32), // documentation
    SIX_TO_FOUR,
    v6(0x3fff, 0, 0, 20), // documentation
];

fn is_public_v6(address: Ipv6Addr) -> bool {
    GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|net| net.contains(&address))
}

const TEREDO: Ipv6Net = v6(0x2001, 0, 0, 32);
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 16);
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);
const NAT64_LOCAL: Ipv6Net = v6(0x64, 0xff9b, 1, 48);

/// The IPv4 addresses inside an IPv6 address, for every form in which a packet may end at them. Empty for the others.
fn carried_v4(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let bytes = address.octets();
    let at = |i: usize| Ipv4Addr::new(bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]);
    if address.to_ipv4_mapped().is_some() || NAT64.contains(&address) || NAT64_LOCAL.contains(&address) {
        return vec![at(12)];
    }
    // IPv4-compatible (RFC 4291 §2.5.5.1, retired); :: and ::1 are addresses of their own.
    if bytes[..12].iter().all(|byte| *byte == 0) && address.to_bits() > 1 {
        return vec![at(12)];
    }
    if SIX_TO_FOUR.contains(&address) {
        return vec![at(2)];
    }
    if TEREDO.contains(&address) {
        // The client's address is stored with every bit turned (RFC 4380 §4).
        return vec![at(4), Ipv4Addr::from_bits(!at(12).to_bits())];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn guard(allow: &[&str]) -> Guard {
        Guard::new(allow.iter().map(|net| net.parse().unwrap()).collect())
    }

    fn permits(guard: &Guard, address: &str) -> bool {
        guard.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn only_public_addresses_may_be_reached() {
        let guard = guard(&[]);
        for address in
            ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.3.1", "2606:4700::1111"]
        {
            assert!(permits(&guard, address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::a00:1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ] {
            assert!(!permits(&guard, address), "{address}");
        }
    }

    #[test]
    fn metadata_services_stay_out_of_reach_whatever_is_allowed() {
        let guard = guard(&["0.0.0.0/0", "::/0"]);
        assert!(permits(&guard, "127.0.0.1") && permits(&guard, "::1") && permits(&guard, "10.0.0.1"));
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::168.63.129.16",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::",
            "2001:0:808:808:0:0:5601:5601",
        ] {
            assert!(!permits(&guard, address), "{address}");
        }
    }

    #[test]
    fn what_is_allowed_is_what_was_named() {
        let private = guard(&["10.0.0.0/8"]);
        assert!(permits(&private, "10.1.2.3"));
        assert!(permits(&private, "::ffff:10.1.2.3"));
        assert!(!permits(&private, "192.168.0.1"));
        assert!(!permits(&private, "::ffff:192.168.0.1"));
        let nat64 = guard(&["64:ff9b::/96"]);
        assert!(permits(&nat64, "64:ff9b::8.8.8.8"));
        assert!(!permits(&nat64, "64:ff9b::10.1.2.3"), "a carrier does not open what it carries");
        let ula = guard(&["fd12::/16"]);
        assert!(permits(&ula, "fd12::1"));
        assert!(!permits(&ula, "fd13::1"));
    }

    #[tokio::test]
    async fn literals_and_names_take_the_same_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wait = Duration::from_secs(5);
        for host in ["127.0.0.1", "localhost", "2130706433", "0x7f.1"] {
            let refused = guard(&[]).dial(host, port, wait).await;
            assert!(matches!(refused, Err(DialError::Refused(_) | DialError::Resolve)), "{host}");
        }
        let open = guard(&["127.0.0.0/8", "::1/128"]);
        let stream = open.dial("127.0.0.1", port, wait).await.unwrap();
        assert!(stream.nodelay().unwrap());
        open.dial("localhost", port, wait).await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_port_and_an_unknown_name_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let open = guard(&["127.0.0.0/8"]);
        let closed = open.dial("127.0.0.1", port, Duration::from_secs(5)).await;
        assert!(matches!(closed, Err(DialError::Connect(_))));
        let unknown = open.dial("no-such-name.invalid", port, Duration::from_secs(5)).await;
        assert!(matches!(unknown, Err(DialError::Resolve | DialError::Timeout)));
    }
}
