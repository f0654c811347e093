//! `curl --retry`, which honours `Retry-After`, against a server that has to refuse at first.

mod support;

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, routing::get};
use http::StatusCode;
use support::{
    eventually,
    line::{line_up, one_permit},
};
use tokio::{
    net::TcpListener,
    process::Command,
    time::{Instant, sleep, timeout},
};
use tower_adaptive_pool::{AdaptivePoolLayer, Limiter, Shed};

const DEADLINE: Duration = Duration::from_secs(20);

/// When each answer was given, and how long a refused one says to stay away.
type Answers = Arc<Mutex<Vec<(Instant, StatusCode, Option<Duration>)>>>;

/// Serves until the test ends.
async fn serve(limiter: &Limiter) -> (String, Answers) {
    let answers = Answers::default();
    let told = answers.clone();
    let handler = limiter.clone();
    let app = Router::new()
        .route(
            "/",
            get(async move || match handler.acquire().await {
                Ok(_permit) => (StatusCode::OK, "served"),
                Err(_) => (StatusCode::GATEWAY_TIMEOUT, "no permit"),
            }),
        )
        .layer(AdaptivePoolLayer::new(limiter.clone()))
        .layer(axum::middleware::map_response(move |response: axum::response::Response| {
            let shed = response.extensions().get::<Shed>().map(|shed| shed.retry_after);
            told.lock().unwrap().push((Instant::now(), response.status(), shed));
            std::future::ready(response)
        }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, answers)
}

#[tokio::test]
async fn curl_retry_waits_as_long_as_it_is_told_and_is_served_then() {
    let limiter = one_permit(2, 2);
    let (url, answers) = serve(&limiter).await;
    // A use of a second, measured, and two who wait: longer than curl would wait by itself, which is a second.
    let held = limiter.acquire().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    drop(held);
    let held = limiter.try_acquire().unwrap();
    let line = line_up(&limiter, 2);

    let curl = Command::new("curl")
        // No ~/.curlrc, no proxy. Without --retry-delay it goes by Retry-After, and else by a second, two, four.
        .args(["--disable", "--noproxy", "*", "--silent", "--show-error", "--fail", "--retry", "3"])
        .args(["--write-out", "\n%{http_code}", &url])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("no curl found: run scripts/setup, or install curl");
    eventually(DEADLINE, async || !answers.lock().unwrap().is_empty()).await;
    drop((line, held));
    let ended = timeout(DEADLINE, curl.wait_with_output()).await.expect("curl ends").unwrap();

    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {said}", ended.status);
    let printed = String::from_utf8(ended.stdout).unwrap();
    assert!(printed.ends_with("served\n200"), "{printed}");
    let answers = answers.lock().unwrap();
    let [(refused, StatusCode::SERVICE_UNAVAILABLE, Some(told)), (served, StatusCode::OK, None)] =
        answers[..]
    else {
        panic!("a refusal, and then an answer: {answers:?}")
    };
    assert!(told >= Duration::from_secs(2), "{told:?}");
    assert!(served - refused >= told, "told {told:?}, back after {:?}", served - refused);
}
