//! A worker for any BullMQ queue: `cargo run -p mpanel-engine --example worker -- redis://127.0.0.1:6379 mails`

use std::time::Duration;

use mpanel_engine::{Engine, JobContext, JobError, handler_fn};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let queue = args.next().unwrap_or_else(|| "mails".to_owned());

    let echo = handler_fn(|ctx: JobContext, data: Value| async move {
        println!("{} {} attempt {}: {data}", ctx.id(), ctx.name(), ctx.attempt());
        if data == json!("bad") {
            return Err(JobError::never("bad mail"));
        }
        Ok(json!({ "echo": data }))
    });

    let engine = Engine::connect(&url).await?;
    let worker = engine.worker(&queue)?.concurrency(10).handle_any(echo).start()?;
    tokio::signal::ctrl_c().await?;
    worker.stop(Duration::from_secs(30)).await;
    Ok(())
}
