//! A world for telemetry's tests: mPanel's database, a Redis, a service whose
//! clock the test moves, and servers to look at.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use mpanel_connect::Redis;
use mpanel_protocol::{
    ids::Prefix,
    time::{Clock, TimestampMs},
};
use mpanel_testkit::{Postgres, RedisServer};
use mpanel_worker::{
    config::{Config, Needs, Sources},
    services::telemetry::{
        Done, TelemetryService,
        clock::{Collector, Tick},
    },
};
use secrecy::ExposeSecret as _;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::database_on;

/// When the tests' clock begins.
pub const START_MS: i64 = 1_800_000_000_000;

#[derive(Debug, Default)]
pub struct MovingClock(AtomicI64);

impl Clock for MovingClock {
    fn now(&self) -> TimestampMs {
        TimestampMs(self.0.load(Ordering::Relaxed))
    }
}

pub struct Watch {
    pub db: PgPool,
    pub url: String,
    pub redis: RedisServer,
    pub service: TelemetryService,
    pub clock: Arc<MovingClock>,
}

impl Watch {
    pub async fn new(settings: &[(&str, &str)]) -> Self {
        Self::on(Postgres::shared().await.unwrap(), settings).await
    }

    pub async fn on(postgres: &Postgres, settings: &[(&str, &str)]) -> Self {
        let (url, db) = database_on(postgres).await;
        let redis = RedisServer::start().await.unwrap();
        let clock = Arc::new(MovingClock(AtomicI64::new(START_MS)));
        let service = service(&url, &redis.url(), &db, &clock, settings);
        Self { db, url, redis, service, clock }
    }

    /// Another worker on the same database and Redis.
    pub fn another(&self, settings: &[(&str, &str)]) -> TelemetryService {
        service(&self.url, &self.redis.url(), &self.db, &self.clock, settings)
    }

    /// One on another database.
    pub fn another_on(&self, url: &str, db: &PgPool) -> TelemetryService {
        service(url, &self.redis.url(), db, &self.clock, &[])
    }

    pub fn set_clock(&self, ms: i64) {
        self.clock.0.store(ms, Ordering::Relaxed);
    }

    /// The tick that is due now.
    pub fn due(&self, collector: Collector) -> Tick {
        Tick { collector, due_ms: self.clock.now().0 }
    }

    /// Runs the tick that is due now and moves the clock to the next.
    pub async fn tick(&self, collector: Collector) -> Done {
        let done = self.service.tick(self.due(collector)).await.unwrap();
        self.set_clock(self.clock.now().0 + i64::try_from(self.service.interval().as_millis()).unwrap());
        done
    }

    /// One value as text; `NULL` is `-`.
    pub async fn one(&self, sql: &str) -> String {
        let sql = format!("SELECT COALESCE((SELECT ({sql})::text), '-')");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.db).await.unwrap()
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.db).await.unwrap();
    }

    /// All status rows of a service, oldest first.
    pub async fn statuses(&self, service: &str) -> String {
        self.one(&format!(
            "SELECT string_agg(status, ' ' ORDER BY checked_at) FROM monitoring_service_status
             WHERE service_name = '{service}'"
        ))
        .await
    }

    /// A figure as it stands.
    pub async fn figure(&self, metric: &str, subject: &str) -> Option<f64> {
        sqlx::query_scalar("SELECT value FROM fleet_telemetry_samples WHERE metric = $1 AND subject = $2")
            .bind(metric)
            .bind(subject)
            .fetch_optional(&self.db)
            .await
            .unwrap()
    }

    /// Why a service is not well.
    pub async fn why(&self, service: &str) -> String {
        self.one(&format!("SELECT why FROM fleet_telemetry_services WHERE service_name = '{service}'")).await
    }
}

fn service(
    url: &str,
    redis: &str,
    db: &PgPool,
    clock: &Arc<MovingClock>,
    settings: &[(&str, &str)],
) -> TelemetryService {
    let mut sources = Sources::default();
    let fixed = [
        ("DATABASE_URL", url),
        ("REDIS_URL", redis),
        ("MPANEL_FLEET_RUN__QUEUES", "telemetry-collect"),
        ("TELEMETRY_INTERVAL_SECONDS", "4"),
    ];
    for (name, value) in fixed.into_iter().chain(settings.iter().copied()) {
        sources.env.insert(name.to_owned(), value.to_owned());
    }
    let config = Config::from_sources(&sources, Needs::All).unwrap();
    let redis = config.redis.unwrap();
    let prefix = Prefix::new(&redis.prefix).unwrap();
    let redis = Redis::open(redis.url.expose_secret()).unwrap();
    TelemetryService::new(db.clone(), config.telemetry, redis, prefix, clock.clone()).unwrap()
}

/// What a server does with a connection, once it has read the request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Sends this and closes.
    Text(String),
    /// Sends the head and then bytes without end.
    Stream,
    /// Sends nothing and keeps the connection.
    Hang,
}

impl Answer {
    pub fn page(status: &str, body: &str) -> Self {
        let length = body.len();
        Self::Text(format!(
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    }

    pub fn redirect(to: &str) -> Self {
        Self::Text(format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"))
    }
}

/// An HTTP server whose answer the test changes. It ends with the test's runtime.
pub struct Page {
    pub port: u16,
    answer: tokio::sync::watch::Sender<Answer>,
    asked: Arc<AtomicI64>,
}

impl Page {
    pub async fn serve(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, receiver) = tokio::sync::watch::channel(answer);
        let asked = Arc::new(AtomicI64::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (receiver, count) = (receiver.clone(), count.clone());
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    if stream.read(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    let answer = receiver.borrow().clone();
                    match answer {
                        Answer::Text(text) => {
                            let _ = stream.write_all(text.as_bytes()).await;
                            let _ = stream.shutdown().await;
                        }
                        Answer::Stream => {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                            while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
                        }
                        Answer::Hang => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, answer: sender, asked }
    }

    pub fn answer(&self, answer: Answer) {
        self.answer.send_replace(answer);
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/health", self.port)
    }

    pub fn asked(&self) -> i64 {
        self.asked.load(Ordering::Relaxed)
    }
}
