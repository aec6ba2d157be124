//! A service of leases on some machine, which a run or a command uses in place of its own ledger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::settings::LeaseServer;

/// How long a connection may take to come about, and a request that waits for nothing to be answered.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection that nobody uses is kept; the service would close it later.
const IDLE: Duration = Duration::from_secs(5);
/// How long a connection over which nothing comes is believed in.
const SILENCE: Duration = Duration::from_secs(15);
/// How long between two tries to reach a service that is away.
const PAUSE: Duration = Duration::from_secs(1);
/// For how long the end of a run is told to a service that is away.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// The service does not answer, or not as it should.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    /// Nobody answers, or somebody who cannot just now.
    #[error("the leases at {url} are away: {why}")]
    Silent {
        /// Where.
        url: String,
        /// What came instead of an answer.
        why: String,
    },
    /// What answers is something else.
    #[error("what answers at {url} is no `isolane serve` (status {status}): --leases takes the address that one says")]
    Stranger {
        /// Where.
        url: String,
        /// The status of its answer.
        status: u16,
    },
    /// The service answers, and does not do it for who asks.
    #[error("the service of leases at {url} refuses: {why}")]
    Refuses {
        /// Where.
        url: String,
        /// What it says.
        why: String,
    },
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// Its body as a document; null where it has none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The document of a success; or what a refusal of the service at `url` says.
    fn ok(self, url: &str) -> Result<Value, Away> {
        let body = self.json();
        if self.status < 300 {
            return Ok(body);
        }
        let why = body["detail"].as_str().map_or_else(|| format!("status {}", self.status), str::to_owned);
        let url = url.to_owned();
        Err(if self.status == 503 { Away::Silent { url, why } } else { Away::Refuses { url, why } })
    }

    /// The answer, unless it is of something else than a service of leases.
    fn of_service(self, url: &str) -> Result<Self, Away> {
        let kind = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_its = match self.status {
            204 => true,
            ..300 => kind.starts_with("application/json"),
            _ => kind.starts_with("application/problem+json"),
        };
        let (url, status) = (url.to_owned(), self.status);
        match status {
            _ if is_its => Ok(self),
            // Something before it says so for it.
            502..=504 => Err(Away::Silent { url, why: format!("status {status}") }),
            _ => Err(Away::Stranger { url, status }),
        }
    }
}

/// The way to a service.
#[derive(Debug)]
pub struct Remote {
    server: LeaseServer,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// When the service has to hear next that the run lives.
    due: watch::Sender<Option<Instant>>,
}

impl Remote {
    /// The way to this service. Certificates are believed that the system believes, or those in
    /// the file that `SSL_CERT_FILE` names.
    pub fn new(server: LeaseServer) -> Result<Self, Away> {
        let away = |why: String| Away::Silent { url: server.url.clone(), why };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(PATIENCE));
        http.set_keepalive(Some(SILENCE));
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| away(error.to_string()))?;
        let tls = if server.url.starts_with("https:") {
            tls.with_native_roots().map_err(|error| away(error.to_string()))?
        } else {
            tls.with_root_certificates(RootCertStore::empty())
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(Self { server, client, due: watch::channel(None).0 })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Asks, for as long as it takes; whoever stops waiting has not asked.
    pub async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, Away> {
        let away = |why: String| Away::Silent { url: self.server.url.clone(), why };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server.url))
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.server.token {
            let value = HeaderValue::from_str(&format!("Bearer {}", token.reveal()));
            let mut value = value.map_err(|_| away("ISOLANE_TOKEN has characters that no token has".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| away(error.to_string()))?;
        let answer = self.client.request(request).await.map_err(|error| away(causes(&error)))?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| away(causes(&error)))?.to_bytes();
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// The same for who wants to be sure that it is a service of leases that answers.
    pub async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, Away> {
        self.call(method, path, body).await?.of_service(self.url())
    }

    /// Tells it something that takes no time.
    async fn tell(&self, path: &str, body: &Value) -> Result<Value, Away> {
        self.soon(Method::POST, path, body.to_string().into()).await
    }

    /// Asks what is answered at once.
    async fn soon(&self, method: Method, path: &str, body: Bytes) -> Result<Value, Away> {
        let away = |why: String| Away::Silent { url: self.server.url.clone(), why };
        let asking = self.ask(method, path, body);
        let answer = tokio::time::timeout(PATIENCE, asking).await;
        let reply = answer.map_err(|_| away(format!("no answer for {} s", PATIENCE.as_secs())))??;
        reply.ok(self.url())
    }

    /// The names of its pools.
    pub async fn pools(&self) -> Result<Vec<String>, Away> {
        let pools = self.soon(Method::GET, "/v1/pools", Bytes::new()).await?;
        Ok(pools.as_array().into_iter().flatten().filter_map(|pool| pool["pool"].as_str()).map(str::to_owned).collect())
    }

    /// Says that a run lives. What comes back is when to say it again, where it keeps something.
    pub async fn alive(&self, run: &str) -> Result<Option<Duration>, Away> {
        let answer = self.tell("/v1/holders/alive", &json!({"run": run})).await?;
        Ok(answer["again_in_ms"].as_u64().map(Duration::from_millis))
    }

    /// Says that a worker of a run is gone, or all of them.
    pub async fn ended(&self, run: &str, worker: Option<&str>) -> Result<(), Away> {
        self.tell("/v1/holders/ended", &json!({"run": run, "worker": worker})).await.map(drop)
    }

    /// A lease was granted that has to be renewed within this time as long as the run lives.
    pub fn keeps(&self, within: Duration) {
        let at = Instant::now() + within;
        self.due.send_if_modified(|due| {
            let is_sooner = due.is_none_or(|due| at < due);
            if is_sooner {
                *due = Some(at);
            }
            is_sooner
        });
    }

    /// Says that the run lives, as often as its leases need it and as long as this is polled.
    pub async fn keep_alive(&self, run: &str) {
        let mut due = self.due.subscribe();
        loop {
            let at = *due.borrow_and_update();
            let Some(at) = at else {
                if due.changed().await.is_err() {
                    return;
                }
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                changed = due.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            // What is granted from here on says so itself.
            self.due.send_replace(None);
            match self.alive(run).await {
                Ok(Some(again)) => self.keeps(again),
                Ok(None) => {}
                Err(_) => self.keeps(PAUSE),
            }
        }
    }
}

/// Says that all of a run are gone, to a service that may be away for a moment.
pub fn run_ended(server: &LeaseServer, run: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let remote = Remote::new(server.clone())?;
        let deadline = Instant::now() + LAST_TRIES;
        loop {
            match remote.ended(run, None).await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                done => return Ok(done?),
            }
        }
    })
}

/// An error with its causes, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some repeat what is below them.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
