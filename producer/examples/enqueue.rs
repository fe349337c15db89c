//! Enqueue one job and a thousand: `cargo run -p mpanel-producer --example enqueue -- redis://127.0.0.1:6379`

use mpanel_producer::{Backoff, BulkJob, EnqueueOptions, Producer};
use serde::Serialize;

#[derive(Serialize)]
struct Mail {
    to: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let mails = Producer::connect(&url).await?.queue("mails")?;

    let options = EnqueueOptions::new().attempts(3).backoff(Backoff::exponential(1000));
    let one = mails.enqueue("welcome", &Mail { to: "a@example.org".to_owned() }, options.clone()).await?;
    println!("stored job {}", one.id());

    let many = (0..1000).map(|i| {
        BulkJob::new("newsletter", Mail { to: format!("user{i}@example.org") }).options(options.clone())
    });
    println!("stored {} more", mails.enqueue_bulk(many).await?.len());
    Ok(())
}
