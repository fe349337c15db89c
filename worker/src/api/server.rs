//! Connections: accepted within a bound, read within a time, ended without
//! cutting off a request. Knows no path.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::exit::{Exit, Failed};

/// Connections at once; others wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take to send the head of a request, and how long a
/// connection may sit idle between two.
const HEAD_MAX: Duration = Duration::from_secs(15);
const HEADERS_MAX: usize = 64;
/// Longest head of a request, bytes.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Listens.
///
/// # Errors
/// Exit 75 when the address is in use, 77 when it may not be used, 78 when it is not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind(address).await.map_err(|error| {
        use std::io::ErrorKind;
        let (exit, hint) = match error.kind() {
            ErrorKind::AddrInUse => (Exit::Temporary, "; is another one running?"),
            ErrorKind::PermissionDenied => (Exit::Permission, "; use a port above 1023"),
            ErrorKind::AddrNotAvailable => (Exit::Configuration, "; it is no address of this machine"),
            _ => (Exit::Failure, ""),
        };
        Failed::new(exit, format!("cannot listen on {address}: {error}{hint}"))
    })
}

/// Serves until `stop`, then gives requests under way `grace` to end. Answers
/// how many connections were cut off.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, grace: Duration) -> usize {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        // Before accepting: what waits in the kernel's queue costs us nothing.
        let permit = tokio::select! {
            // cancel-safe: a permit that was given is given back when dropped.
            () = stop.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            // cancel-safe: a connection that was not taken stays with the kernel.
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), stop.clone());
                let abort = abort.clone();
                connections.spawn(async move {
                    tokio::select! {
                        // cancel-safe: a request that is cut off is a transaction that is rolled back.
                        () = abort.cancelled() => {}
                        () = connection => {}
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: let some close.
                tracing::warn!(%error, "a connection was not accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(grace, connections.wait()).await.is_ok() {
        return 0;
    }
    let left = connections.len();
    abort.cancel();
    connections.wait().await;
    left
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Without it only latency suffers.
    let _ = stream.set_nodelay(true);
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // However a connection ends, there is nobody left to tell.
        _ = serving.as_mut() => return,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}
