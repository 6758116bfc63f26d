//! A small HTTP server for this machine: binding, limits on connections, a graceful stop. Knows no routes.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::failure::{Failure, exit_interrupted};

/// Connections that are open at one time; more wait to be accepted.
const CONNECTIONS: usize = 1024;
/// How long a connection may go without a whole request's head, between two requests as well. A request that crosses the
/// closing is lost, so this is longer than proxies and clients keep an idle connection (60 s at most, by their defaults).
const HEAD: Duration = Duration::from_secs(75);

/// Where to listen.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub host: IpAddr,
    /// 0 for any that is free.
    pub port: u16,
}

/// A wish to stop, raised by Ctrl-C or SIGTERM; a second one ends the process at once.
#[derive(Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    /// Listens for the signals from here on.
    pub fn listen() -> Result<Stop, Failure> {
        let stop = Stop(Arc::new(watch::Sender::new(false)));
        let told = stop.clone();
        let mut before = false;
        let handler = move || {
            if std::mem::replace(&mut before, true) {
                exit_interrupted();
            }
            told.raise();
        };
        ctrlc::set_handler(handler).map_err(|e| Failure::stage(format!("cannot listen for Ctrl-C: {e}")))?;
        Ok(stop)
    }

    /// Stops the server as a signal would.
    pub fn raise(&self) {
        self.0.send_replace(true);
    }

    /// Waits until somebody wishes it.
    pub async fn raised(&self) {
        let _ = self.0.subscribe().wait_for(|raised| *raised).await;
    }
}

/// Runs a future to its end on a runtime of one thread; blocking work has threads of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::stage(format!("cannot start the server: {e}")))?;
    let output = runtime.block_on(future);
    // Whatever still runs on a thread has nobody left to answer.
    runtime.shutdown_background();
    Ok(output)
}

/// Binds the place.
///
/// # Errors
/// A port that is taken or not allowed: a resource that cannot be had.
pub async fn bind(place: Place) -> Result<TcpListener, Failure> {
    let address = SocketAddr::new(place.host, place.port);
    TcpListener::bind(address).await.map_err(|e| {
        Failure::busy(format!("cannot listen on {address}: {e}")).hint("name another with --port, or --port 0 for any")
    })
}

/// Serves until `stop` is raised; then takes no more connections and gives what is being answered `grace` to finish.
pub async fn serve(listener: TcpListener, routes: Router, stop: Stop, grace: Duration) {
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let place = open.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = stop.raised() => break,
        };
        // An error here is one client's, or that too many files are open: neither is mended by haste.
        let (Ok((stream, _)), Ok(place)) = (accepted, place) else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(routes.clone());
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // How a connection ends is its client's affair.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(grace, graceful.shutdown()).await;
}

/// Refuses requests that a page of another site has a browser send to this machine: names that only resolve to it (DNS
/// rebinding), and origins other than the server's own.
pub async fn same_site(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = header_text(headers, header::HOST);
    let local = host.is_none_or(is_local);
    let origin = header_text(headers, header::ORIGIN);
    let own =
        origin.is_none_or(|origin| host.is_some_and(|host| origin.split_once("://").is_some_and(|o| o.1 == host)));
    if local && own {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "this server answers its own machine's pages and programs only\n").into_response()
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether a `Host` header means this machine.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inner, _)) => inner,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_told_from_others() {
        for host in ["localhost:8080", "LOCALHOST", "127.0.0.1:1", "[::1]:8080", "192.168.0.2:80"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["evil.example:8080", "localhost.evil.example", ""] {
            assert!(!is_local(host), "{host}");
        }
    }
}
