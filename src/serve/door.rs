//! The door of a service: connections over TCP, with or without TLS, each of which can be slow
//! or silent without being in anybody's way.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// How long a handshake may take, and how long the head of a request may be awaited.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after the stop the rest may take to finish.
const GRACE: Duration = Duration::from_secs(10);
/// How long it rests where no connection can be taken, because there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// What somebody gets for whom there is no place.
const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n\
Connection: close\r\nContent-Length: 132\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\"code\":\"busy\",\"detail\":\"there are too many connections; try again\"}";

/// A door.
pub struct Door {
    /// Where it is.
    pub listener: TcpListener,
    /// What makes connections secret.
    pub tls: Option<TlsAcceptor>,
    /// How many connections there may be at a time.
    pub most: usize,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("listener", &self.listener).field("most", &self.most).finish_non_exhaustive()
    }
}

impl Door {
    /// Answers until `stopping` says so; then what has begun is finished.
    pub async fn attend(self, router: Router, mut stopping: watch::Receiver<bool>) {
        let Self { listener, tls, most } = self;
        let places = Arc::new(Semaphore::new(most));
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.wait_for(|is| *is) => break,
            };
            let Ok((stream, address)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tokio::spawn(turn_away(stream, tls.is_some()));
                continue;
            };
            let (router, tls, watcher) = (router.clone(), tls.clone(), graceful.watcher());
            tokio::spawn(async move {
                match tls {
                    None => converse(stream, address, router, watcher).await,
                    Some(tls) => {
                        if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                            converse(stream, address, router, watcher).await;
                        }
                    }
                }
                drop(place);
            });
        }
        drop(listener);
        let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
    router: Router,
    watcher: Watcher,
) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move {
            let mut request: Request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(ConnectInfo(address));
            let answer: Result<Response, Infallible> = router.oneshot(request).await;
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    // What breaks off is over, and nobody is there to be told.
    let _ = watcher.watch(connection).await;
}

/// Says that there is no place. Over TLS that would take a handshake.
async fn turn_away(mut stream: TcpStream, is_secret: bool) {
    if !is_secret {
        let _ = tokio::time::timeout(PAUSE, stream.write_all(FULL.as_bytes())).await;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_answer_of_a_full_house_is_as_long_as_it_says() {
        let (head, body) = super::FULL.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
