//! The parent's side: starts the generator's process and listens to it.

use std::{env, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

use super::{Line, Plan, Progress, stats::GeneratorReport};
use crate::Error;

/// Carries out the plan; dropped before its end, it takes the process with it.
pub async fn generate(plan: &Plan, mut on_progress: impl FnMut(&Progress)) -> Result<GeneratorReport, Error> {
    let mut child = Command::new(env::current_exe()?)
        .arg("--generate")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        // Out of the terminal's reach: Ctrl-C is for us to handle, and to pass on.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("the generator's process did not start: {error}"))?;
    // Kept open until the end: its closing tells the child that we are gone, even when we were killed.
    let mut stdin = child.stdin.take().ok_or("the generator's process has no stdin")?;
    let stdout = child.stdout.take().ok_or("the generator's process has no stdout")?;
    stdin.write_all(format!("{}\n", serde_json::to_string(plan)?).as_bytes()).await?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line)? {
            Line::Progress(progress) => on_progress(&progress),
            Line::Report(report) => return Ok(*report),
        }
    }
    Err(format!("the generator's process ended without a report ({})", child.wait().await?).into())
}
