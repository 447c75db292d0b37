//! stub
use http::{Request, Response};
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
/// x
#[allow(missing_docs)]
pub struct Shared {
    pub access: Arc<crate::access::Access>,
    pub accounts: Arc<crate::accounts::Accounts>,
    pub audit: crate::audit::Audit,
    pub store: crate::store::Store,
    pub metrics: Arc<crate::telemetry::Metrics>,
    pub guard: Arc<crate::net::Guard>,
    pub tls: Arc<rustls::ClientConfig>,
    pub clock: crate::clock::Clock,
    pub limits: crate::config::Limits,
    pub timeouts: crate::config::Timeouts,
    pub public_url: String,
    pub admin_url: String,
    pub ready: Arc<AtomicBool>,
    pub shutdown: crate::shutdown::Shutdown,
}
/// x
pub struct Gateway(Arc<Shared>);
impl Gateway {
    /// x
    pub fn new(s: Arc<Shared>) -> Self {
        Self(s)
    }
    /// x
    pub async fn serve(&self, _r: Request<Incoming>) -> Response<String> {
        let _ = &self.0;
        todo!()
    }
}
