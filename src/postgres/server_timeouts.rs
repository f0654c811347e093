//! The server's own time-outs, as the second line of defence: a statement ends there at twice our time-out, should our
//! cancel be lost; and one whose client is gone ends within seconds (PostgreSQL 14 and later).
//!
//! Nobody asked for them: what is set elsewhere stays, 0 (no limit) too, and a server that does not take one does without.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::join;
use tokio::time::Instant;
use tokio_postgres::error::Severity;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::DialError;
use crate::backend::Place;

const STATEMENT_TIMEOUT: &str = "statement_timeout";
const CHECK_INTERVAL: &str = "client_connection_check_interval";
/// How long the answer to the question whose a setting is holds. To ask reads `pg_settings`, for which the server computes
/// every setting there is.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Connections in a row that a server closed without a word when it was sent a setting: it is the setting then.
const HANG_UPS: u32 = 3;

/// Whether a setting is ours to set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Whose {
    /// To be asked.
    #[default]
    Unknown,
    /// Nobody else had set it.
    Ours,
    /// Somebody else had.
    Theirs,
    /// The server does not take it.
    Nobodys,
}

/// What the dials of one backend know of the server's settings.
#[derive(Debug, Default)]
pub(super) struct ServerTimeouts {
    statement_timeout: Setting,
    check_interval: Setting,
}

#[derive(Debug, Default)]
struct Setting(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    whose: Whose,
    asked: Option<Instant>,
    hang_ups: u32,
    told: bool,
}

impl ServerTimeouts {
    /// Sets them on a new connection, both in one round trip.
    ///
    /// # Errors
    /// The connection is of no use.
    pub async fn set(&self, client: &Client, place: &Place, query_timeout: Duration) -> Result<(), Error> {
        let millis = i32::try_from(query_timeout.saturating_mul(2).as_millis()).ok();
        let statement_timeout = async {
            let Some(millis) = millis else { return Ok(()) };
            self.statement_timeout.set(client, place, STATEMENT_TIMEOUT, &millis.to_string()).await
        };
        let check_interval = self.check_interval.set(client, place, CHECK_INTERVAL, "2s");
        let (first, second) = join!(statement_timeout, check_interval);
        let errors = [first.as_ref().err(), second.as_ref().err()];
        // An error before it, also about the other setting, is a reason of its own.
        if errors.iter().flatten().all(|error| error.as_db_error().is_none()) {
            for (setting, name, error) in [
                (&self.statement_timeout, STATEMENT_TIMEOUT, errors[0]),
                (&self.check_interval, CHECK_INTERVAL, errors[1]),
            ] {
                if error.is_some() {
                    setting.hung_up(place, name);
                }
            }
        }
        first.and(second)
    }
}

impl Setting {
    async fn set(&self, client: &Client, place: &Place, name: &str, value: &str) -> Result<(), Error> {
        let whose = self.0.lock().whose();
        let sql = match whose {
            Whose::Unknown => format!(
                "select case source when 'default' then set_config(name, '{value}', false) end \
                 from pg_settings where name = '{name}'"
            ),
            // 0 is the default.
            Whose::Ours => format!(
                "select set_config('{name}', '{value}', false) where current_setting('{name}', true) = '0'"
            ),
            Whose::Theirs | Whose::Nobodys => return Ok(()),
        };
        match client.simple_query(&sql).await {
            Ok(_) if whose == Whose::Ours => {
                self.0.lock().hang_ups = 0;
                Ok(())
            }
            Ok(answer) => {
                let found = asked(&answer);
                self.found(
                    found,
                    (found == Whose::Nobodys).then_some((place, name, "the server does not know it")),
                );
                Ok(())
            }
            Err(error) if is_refusal(&error) => {
                let ends =
                    error.as_db_error().is_none_or(|said| said.parsed_severity() != Some(Severity::Error));
                let error = DialError::Postgres(error);
                self.found(Whose::Nobodys, Some((place, name, &error.to_string())));
                match error {
                    DialError::Postgres(error) if ends => Err(error),
                    _ => Ok(()),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The server closed the connection without a word when it was sent this.
    fn hung_up(&self, place: &Place, name: &str) {
        let hang_ups = {
            let mut known = self.0.lock();
            known.hang_ups += 1;
            known.hang_ups
        };
        if hang_ups >= HANG_UPS {
            self.found(Whose::Nobodys, Some((place, name, "the server hangs up when it is sent")));
            // Asked again, it hangs up on one connection and not on as many.
            self.0.lock().hang_ups = HANG_UPS - 1;
        }
    }

    /// Remembers whose it is, and tells once where the server does not take it.
    fn found(&self, whose: Whose, tell: Option<(&Place, &str, &str)>) {
        let told = {
            let mut known = self.0.lock();
            (known.whose, known.asked, known.hang_ups) = (whose, Some(Instant::now()), 0);
            let told = known.told;
            known.told |= tell.is_some();
            told
        };
        if let Some((place, name, why)) = tell.filter(|_| !told) {
            place.setting_refused(name, why);
        }
    }
}

impl Known {
    /// As far as that still holds.
    fn whose(&self) -> Whose {
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) { Whose::Unknown } else { self.whose }
    }
}

/// Whether the server has something against the setting, and not against us, or now: bad values (class 22), unknown
/// or forbidden ones (42, 0A), those that cannot be changed (55).
fn is_refusal(error: &Error) -> bool {
    let class = |state: &str| ["22", "42", "0A", "55"].iter().any(|class| state.starts_with(class));
    error.code().is_some_and(|state| class(state.code()))
}

/// Who had set it, by the row of `pg_settings`.
fn asked(answer: &[SimpleQueryMessage]) -> Whose {
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0)),
        _ => None,
    });
    match row {
        Some(Some(_)) => Whose::Ours,
        Some(None) => Whose::Theirs,
        None => Whose::Nobodys,
    }
}
