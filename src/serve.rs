//! `isolane serve`: pools, leases and runs for a team and for machines of CI, over TCP.
//!
//! [`router`] is all that is served; other routers are merged into it there. Around all of it
//! stands what is counted ([`metrics`]) and the stop; around the API, who may do what
//! ([`access`]), and the length of bodies ([`limits`]).

pub mod access;
mod door;
mod limits;
mod metrics;
mod tls;
pub mod tokens;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::address::Address;
use crate::api::leases::{Counter, Introduce};
use crate::api::problem::{self, Problem};
use crate::api::{holders, leases, openapi, pools, runs};
use crate::catalogue::{self, Catalogue, Visitor};
use crate::desk::Desk;
use crate::error::{ExitCode, Stop, one_line};
use crate::lease::store::Store;
use crate::ledger::lease::LedgerStore;
use crate::ledger::token::{self, Role};
use crate::ledger::{self, Durability, Writer};
use crate::provider::open_store;
use crate::report::say;
use crate::secret::Vault;
use crate::settings::{Settings, StoreAddress};
use crate::stock::{self, Stock};
use access::{Access, Caller};
use door::Door;
use metrics::{Counted, Metrics};

/// For how long a look at the store's health counts, so that who asks for it all the time does
/// not make it write all the time.
const HEALTH: Duration = Duration::from_secs(1);

/// How it is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens: a host and a port.
    pub listen: String,
    /// Certificate chain and key, PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Other machines may come without TLS.
    pub plain: bool,
    /// How many connections there may be at a time.
    pub connections: usize,
    /// How many requests a second one token may make.
    pub rate: u32,
}

/// When the store was looked at last, and whether it could be written.
type Health = (Instant, Result<(), String>);

/// What the service answers from.
#[derive(Clone, Debug)]
pub struct Service {
    /// Pools and leases.
    pub desk: Desk,
    /// What runs the commands of pools.
    pub stock: Stock,
    /// The ledger's file, from which runs are read.
    pub ledger: PathBuf,
    /// Who may do what.
    pub access: Arc<Access>,
    /// Says when the service stops: whoever goes on for long ends then.
    pub stopping: watch::Receiver<bool>,
    /// Whether it is served over TLS.
    pub is_secure: bool,
    metrics: Arc<Metrics>,
    writer: Writer,
    health: Arc<Mutex<Option<Health>>>,
}

/// Everything that is served.
pub fn router(service: &Service) -> Router {
    let counter = Counter { desk: service.desk.clone(), introduce: introduction() };
    let api = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(figures))
        .with_state(service.clone())
        .merge(leases::routes(counter.clone()))
        .merge(pools::routes(counter.clone()))
        .merge(pools::fill_routes(service.stock.clone()))
        .merge(holders::routes(counter))
        .merge(runs::routes(service.ledger.clone()))
        .merge(openapi::routes())
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "unknown-path", "there is nothing at this path") })
        .layer(middleware::from_fn_with_state(Arc::clone(&service.access), admit));
    // What looks after its own access, and the bodies of its requests, is merged here.
    let page = catalogue::routes(shop_window(service)).layer(middleware::from_fn(limits::bodies));
    let around = Arc::new(Around { metrics: Arc::clone(&service.metrics), stopping: service.stopping.clone() });
    api.merge(page).layer(middleware::from_fn_with_state(around, attend_to))
}

/// What every request needs.
struct Around {
    metrics: Arc<Metrics>,
    stopping: watch::Receiver<bool>,
}

/// Counts a request, and ends it when the service stops.
async fn attend_to(State(around): State<Arc<Around>>, request: Request, next: Next) -> Response {
    let counted = Counted::begin(&request);
    let response = limits::waits(&around.stopping, request, next).await;
    around.metrics.count(&counted, &response);
    response
}

/// Lets in who may come in, and says who it is. Nothing of a body is waited for before that.
async fn admit(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    match access.admit(&mut request) {
        Ok(()) => problem::document(limits::bodies(request, next).await),
        Err(response) => {
            limits::linger(request);
            *response
        }
    }
}

/// The page: whoever has a token may look at it, and do there what the token allows.
fn shop_window(service: &Service) -> Catalogue {
    let access = Arc::clone(&service.access);
    let visitor = |Caller { name, role }| Visitor {
        name: name.to_string(),
        may_lease: role >= Role::Lease,
        may_admin: role >= Role::Admin,
    };
    let doorkeeper = move |token: String| {
        let found = match access.caller(&token) {
            Ok(caller) => Ok(Some(visitor(caller))),
            Err(problem) if problem.status == StatusCode::UNAUTHORIZED => Ok(None),
            Err(problem) => Err(problem.detail),
        };
        Box::pin(std::future::ready(found)) as _
    };
    Catalogue {
        desk: service.desk.clone(),
        ledger: service.ledger.clone(),
        doorkeeper: Arc::new(doorkeeper),
        is_secure: service.is_secure,
        stopping: service.stopping.clone(),
    }
}

/// A holder is known by the token that it came with, and by what it says of itself.
fn introduction() -> Arc<Introduce> {
    Arc::new(|extensions, holder| {
        if let Some(caller) = extensions.get::<Caller>() {
            let name = &caller.name;
            let client = holder.client.take();
            holder.client = Some(client.map_or_else(|| name.to_string(), |client| format!("{name}/{client}")));
        }
    })
}

async fn healthz(State(service): State<Service>) -> Result<Json<Value>, Problem> {
    let lately = service.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let health = match lately {
        Some((at, health)) if at.elapsed() < HEALTH => health,
        _ => {
            let writer = service.writer.clone();
            let look = tokio::task::spawn_blocking(move || writer.commit(Durability::Process, token::touch));
            let mut health = match look.await {
                Ok(written) => written.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if health.is_ok() {
                health = service.desk.check().await.map_err(|error| error.to_string());
            }
            let now = (Instant::now(), health.clone());
            *service.health.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
            health
        }
    };
    let problem = |why| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store", format!("it cannot be written: {why}"));
    health.map(|()| Json(json!({"status": "ok"}))).map_err(problem)
}

async fn figures(State(service): State<Service>) -> Result<impl IntoResponse, Problem> {
    let text = metrics::text(&service).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

/// The store of these settings, open for one command.
pub(crate) struct Open {
    pub(crate) writer: Writer,
    thread: std::thread::JoinHandle<Option<rusqlite::Error>>,
}

impl Open {
    pub(crate) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let path = &settings.ledger;
        let cannot = |error: anyhow::Error| {
            Stop::usage(format!("cannot use the ledger {}: {}", path.display(), one_line(&error)))
        };
        let (writer, thread) = Writer::start(ledger::open(path).map_err(cannot)?);
        Ok(Self { writer, thread })
    }

    pub(crate) fn close(self) {
        self.writer.close();
        let _ = self.thread.join();
    }
}

/// Serves the ledger of these settings until a signal comes.
pub fn serve(settings: &Settings, options: &Options) -> anyhow::Result<i32> {
    let tls = options.tls.as_ref().map(|(chain, key)| tls::acceptor(chain, key)).transpose()?;
    let address = resolve(&options.listen)?;
    if tls.is_none() && !options.plain && !address.ip().is_loopback() {
        return Err(Stop::usage(format!(
            "{address} is open to other machines, and tokens would pass in clear: --tls-cert and --tls-key name a certificate, --plain does without"
        )));
    }
    let open = Open::new(settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(attend(settings, options, &open.writer, address, tls));
    drop(runtime);
    open.close();
    served
}

async fn attend(
    settings: &Settings,
    options: &Options,
    writer: &Writer,
    address: SocketAddr,
    tls: Option<tokio_rustls::TlsAcceptor>,
) -> anyhow::Result<i32> {
    // From here on, who stops it stops it in order.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Stop::with(ExitCode::Unavailable, format!("cannot listen on {address}: {error}")))?;
    let address = listener.local_addr()?;
    let store: Box<dyn Store> = match &settings.store {
        Some(StoreAddress { url, place }) => open_store(url, place, &settings.variables, &settings.cwd)?,
        None => Box::new(LedgerStore::new(writer.clone(), &settings.ledger)),
    };
    let desk = Desk::new(store, None);
    crate::pools::configure(&desk, settings).await?;
    desk.listen();
    if let Some(token) = tokens::first(writer)? {
        say(&format!(
            "there was no token; this one is named admin, may do everything, and is shown only now: {}",
            token.reveal()
        ));
    }
    let stock = Stock::new(&desk, None, Vault::new(settings.secrets()), true);
    let (stop, stopping) = watch::channel(false);
    let service = Service {
        desk: desk.clone(),
        stock: stock.clone(),
        ledger: settings.ledger.clone(),
        access: Arc::new(Access::new(tokens::reader(&settings.ledger)?, options.rate)),
        stopping: stopping.clone(),
        is_secure: options.tls.is_some(),
        metrics: Arc::default(),
        writer: writer.clone(),
        health: Arc::default(),
    };
    let clock = tokio::spawn({
        let desk = desk.clone();
        async move { desk.keep_time().await }
    });
    let counting = tokio::spawn({
        let metrics = Arc::clone(&service.metrics);
        async move { metrics.hear(&desk).await }
    });
    let tending = tokio::spawn({
        let stock = stock.clone();
        async move { stock.tend().await }
    });
    let scheme = if tls.is_some() { "https" } else { "http" };
    say(&format!("serving {} at {scheme}://{address}", served(settings)));
    let door = Door { listener, tls, most: options.connections };
    let attending = tokio::spawn(door.attend(router(&service), stopping));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = stop.send(true);
    let _ = attending.await;
    clock.abort();
    counting.abort();
    tending.abort();
    for line in tokio::task::spawn_blocking(move || stock.settle(stock::SETTLING)).await.unwrap_or_default() {
        say(&line);
    }
    Ok(0)
}

/// What is served, as it is told: the ledger, and where pools and leases are kept beside it.
fn served(settings: &Settings) -> String {
    let ledger = settings.ledger.display();
    let store = settings.store.as_ref().map(|it| Address::parse(&it.url, &settings.variables, &settings.cwd));
    match store {
        Some(Ok(Address::Postgres(store))) => format!("the leases of {} and the ledger {ledger}", store.id()),
        _ => ledger.to_string(),
    }
}

fn resolve(listen: &str) -> anyhow::Result<SocketAddr> {
    let bad = |why: &dyn std::fmt::Display| Stop::usage(format!("--listen {listen}: {why}; it takes HOST:PORT"));
    let mut found = listen.to_socket_addrs().map_err(|error| bad(&error))?;
    found.next().ok_or_else(|| bad(&"it names no address"))
}
