//! What a fixed pool does when more is asked of it than it can do: measured, where a scenario's rates are parts of that.

use crate::{
    Error, Session,
    args::PoolSpec,
    scenario::{Phase, Rates, Scenario},
    table::count,
};

/// Long enough that a single wait of half a second is no great part of it.
const SECONDS: u32 = 3;

/// Answers a second, on this machine and now; `None` where the scenario's rates are known.
pub async fn measure(session: &mut Session<'_>, scenario: &'static Scenario) -> Result<Option<f64>, Error> {
    let Rates::OfCapacity { saturating_per_s, .. } = scenario.rates else { return Ok(None) };
    let pool: PoolSpec = format!("fixed:{}", scenario.bears).parse()?;
    let phase = Phase { name: "saturated".into(), rate_per_s: saturating_per_s, seconds: SECONDS };
    let run = session.run(scenario, pool, vec![phase]).await?;
    run.check()?;
    let capacity = run.load.in_phase.served as f64 / f64::from(SECONDS);
    if capacity < 1.0 {
        return Err(format!("{}: {pool} served nothing when saturated", scenario.name).into());
    }
    println!("{}: {pool} does {}/s saturated", scenario.name, count(capacity.round() as u64));
    Ok(Some(capacity))
}
