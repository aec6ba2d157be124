//! `isolane serve`: pools and leases for a team and for machines of CI, over TCP.
//!
//! [`router`] is all that is served; other routers are merged into it there.

mod door;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use axum::Router;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::leases::Counter;
use crate::api::problem::Problem;
use crate::api::{leases, pools};
use crate::desk::Desk;
use crate::error::{ExitCode, Stop, one_line};
use crate::ledger::lease::LedgerStore;
use crate::ledger::{self, Writer};
use crate::report::say;
use crate::settings::Settings;
use door::Door;

/// How it is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens: a host and a port.
    pub listen: String,
    /// How many connections there may be at a time.
    pub connections: usize,
}

/// What the service answers from.
#[derive(Clone, Debug)]
pub struct Service {
    /// Pools and leases.
    pub desk: Desk,
    /// The ledger's file, from which runs are read.
    pub ledger: PathBuf,
    /// Says when the service stops: whoever goes on for long ends then.
    pub stopping: watch::Receiver<bool>,
}

/// Everything that is served.
pub fn router(service: &Service) -> Router {
    let counter = Counter::open(service.desk.clone());
    Router::new()
        .merge(leases::routes(counter.clone()))
        .merge(pools::routes(counter))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "unknown-path", "there is nothing at this path") })
}

/// Serves the ledger of these settings until a signal comes.
pub fn serve(settings: &Settings, options: &Options) -> anyhow::Result<i32> {
    let path = &settings.ledger;
    let cannot =
        |error: &anyhow::Error| Stop::usage(format!("cannot use the ledger {}: {}", path.display(), one_line(error)));
    let (writer, thread) = Writer::start(ledger::open(path).map_err(|error| cannot(&error))?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(attend(settings, options, &writer));
    drop(runtime);
    writer.close();
    let _ = thread.join();
    served
}

async fn attend(settings: &Settings, options: &Options, writer: &Writer) -> anyhow::Result<i32> {
    let desk = Desk::new(Box::new(LedgerStore::new(writer.clone(), &settings.ledger)), None);
    let (stop, stopping) = watch::channel(false);
    let address = resolve(&options.listen)?;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Stop::with(ExitCode::Unavailable, format!("cannot listen on {address}: {error}")))?;
    let address = listener.local_addr()?;
    let clock = tokio::spawn({
        let desk = desk.clone();
        async move { desk.keep_time().await }
    });
    crate::pools::configure(&desk, &settings.pools).await?;
    let service = Service { desk, ledger: settings.ledger.clone(), stopping: stopping.clone() };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    say(&format!("serving http://{address}"));
    let door = Door { listener, tls: None, most: options.connections };
    let attending = tokio::spawn(door.attend(router(&service), stopping));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = stop.send(true);
    let _ = attending.await;
    clock.abort();
    Ok(0)
}

fn resolve(listen: &str) -> anyhow::Result<SocketAddr> {
    let bad = |why: &dyn std::fmt::Display| Stop::usage(format!("--listen {listen}: {why}; it takes HOST:PORT"));
    let mut found = listen.to_socket_addrs().map_err(|error| bad(&error))?;
    found.next().ok_or_else(|| bad(&"it names no address"))
}
