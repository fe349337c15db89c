//! A wire between an engine and Redis that loses an answer when told to, or carries
//! nothing for a while.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};

/// Listens on a port of its own; every connection leads to the same server.
#[derive(Clone)]
pub struct Wire {
    pub port: u16,
    armed: Arc<AtomicBool>,
    lost: Arc<Notify>,
    /// Nothing is carried, and nobody is told: a partition. The last of these is for
    /// new connections; those before belong to connections that were abandoned.
    silent: Arc<Mutex<Vec<watch::Sender<bool>>>>,
    /// How many connections were made.
    made: watch::Sender<usize>,
}

impl Wire {
    pub async fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = Arc::new(Mutex::new(vec![watch::Sender::new(false)]));
        let made = watch::Sender::new(0);
        let wire = Self { port, armed: Arc::default(), lost: Arc::default(), silent, made };
        let made = wire.clone();
        // Ends with the test's runtime.
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let silent = made.silent.lock().unwrap().last().unwrap().subscribe();
                made.made.send_modify(|count| *count += 1);
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)).await {
                    tokio::spawn(made.clone().carry(client, server, silent));
                }
            }
        });
        wire
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The next script call reaches the server; its answer is lost, and the
    /// connection with it.
    pub fn lose_next_answer(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// From now on nothing comes through, in either direction, and no connection is
    /// refused or closed; until the wire is mended.
    pub fn cut(&self) {
        self.silent.lock().unwrap().last().unwrap().send_replace(true);
    }

    /// New connections are carried; those there are stay open and silent for good, as
    /// behind a router that forgot them.
    pub fn abandon(&self) {
        self.silent.lock().unwrap().push(watch::Sender::new(false));
    }

    /// What is on its way comes through now.
    pub fn mend(&self) {
        self.silent.lock().unwrap().last().unwrap().send_replace(false);
    }

    /// Waits until `count` more connections were made.
    pub async fn connected(&self, count: usize) {
        let mut made = self.made.subscribe();
        let until = *made.borrow_and_update() + count;
        let seen = tokio::time::timeout(super::PATIENCE, made.wait_for(|made| *made >= until)).await;
        seen.expect("no new connections").unwrap();
    }

    /// Waits until an answer was lost.
    pub async fn lost(&self) {
        tokio::time::timeout(super::PATIENCE, self.lost.notified()).await.expect("no answer was lost");
    }

    async fn carry(self, client: TcpStream, server: TcpStream, mut up_silent: watch::Receiver<bool>) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let doomed = Arc::new(AtomicBool::new(false));
        let (armed, doom) = (self.armed.clone(), doomed.clone());
        let mut down_silent = up_silent.clone();
        let up = async move {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(n @ 1..) = from_client.read(&mut bytes).await {
                if bytes[..n].windows(7).any(|w| w == b"EVALSHA") && armed.swap(false, Ordering::SeqCst) {
                    doom.store(true, Ordering::SeqCst);
                }
                if up_silent.wait_for(|silent| !silent).await.is_err() {
                    break;
                }
                if to_server.write_all(&bytes[..n]).await.is_err() {
                    break;
                }
            }
        };
        let down = async move {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(n @ 1..) = from_server.read(&mut bytes).await {
                if doomed.load(Ordering::SeqCst) {
                    self.lost.notify_one();
                    break;
                }
                if down_silent.wait_for(|silent| !silent).await.is_err() {
                    break;
                }
                if to_client.write_all(&bytes[..n]).await.is_err() {
                    break;
                }
            }
        };
        // cancel-safe: the end of either direction is the end of the connection.
        tokio::select! {
            () = up => {}
            () = down => {}
        }
    }
}
