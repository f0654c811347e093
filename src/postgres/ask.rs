//! What is asked of a server: one statement each, tracked, and tried once more where the server has forgotten it.

use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use futures_core::Stream;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{BorrowToSql, Format, IsNull, ToSql, Type};
use tokio_postgres::{Client, Error, Row, RowStream};

use super::doubt::Doubt;
use super::statement::{Form, Statement, is_stale};
use super::track::{Running, Sends, Track};
use super::{CopyIn, CopyOut, Rows, Sql};
use crate::error::QueryError;

/// A client, for its user or for a transaction, and what is known of its session.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub client: &'a Client,
    pub track: Track<'a>,
}

/// A statement about to be sent.
enum Attempt {
    /// From the cache, and so possibly stale.
    Cached(Statement),
    /// Not to be tried again.
    Last(tokio_postgres::Statement),
}

impl Deref for Attempt {
    type Target = tokio_postgres::Statement;

    fn deref(&self) -> &tokio_postgres::Statement {
        match self {
            Self::Cached(statement) => statement,
            Self::Last(statement) => statement,
        }
    }
}

impl<'a> Ask<'a> {
    pub async fn query<S: Sql + ?Sized>(self, sql: &S, params: Params<'_>) -> Result<Vec<Row>, QueryError> {
        let all = async {
            let mut rows = pin!(self.start(sql, params).await?);
            let mut all = Vec::new();
            while let Some(row) = next(rows.as_mut()).await? {
                all.push(row);
            }
            Ok(all)
        };
        self.track.finish(self.begin(sql)?, all).await
    }

    pub async fn query_one<S: Sql + ?Sized>(self, sql: &S, params: Params<'_>) -> Result<Row, QueryError> {
        match self.find(sql, params).await? {
            (Some(row), running) => running.end(Ok(row)),
            (None, running) => Err(running.fail(QueryError::NoRow)),
        }
    }

    pub async fn query_opt<S: Sql + ?Sized>(
        self,
        sql: &S,
        params: Params<'_>,
    ) -> Result<Option<Row>, QueryError> {
        let (row, running) = self.find(sql, params).await?;
        running.end(Ok(row))
    }

    /// The only row, if there is one. Reads no further than a second: what else there is would go on arriving.
    async fn find<'s, S: Sql + ?Sized>(
        self,
        sql: &'s S,
        params: Params<'_>,
    ) -> Result<(Option<Row>, Running<'a, 's>), QueryError> {
        let found = async {
            let mut rows = pin!(self.start(sql, params).await?);
            let first = next(rows.as_mut()).await?;
            let more = first.is_some() && next(rows).await?.is_some();
            Ok((first, more))
        };
        match self.track.begun(self.begin(sql)?, found).await? {
            ((row, false), running) => Ok((row, running)),
            ((_, true), running) => Err(running.leave(QueryError::TooManyRows)),
        }
    }

    pub async fn query_raw<S, P, I>(self, sql: &'a S, params: I) -> Result<Rows<'a>, QueryError>
    where
        S: Sql + ?Sized,
        P: BorrowToSql,
        I: IntoIterator<Item = P>,
        I::IntoIter: ExactSizeIterator,
    {
        let params: Vec<P> = params.into_iter().collect();
        let running = self.begin(sql)?;
        let held = self.track.known.doubts.hold_stream();
        let (rows, running) = self.track.begun(running, self.start(sql, &params)).await?;
        Ok(Rows::new(rows, running, held, self.track.limit))
    }

    pub async fn execute<S: Sql + ?Sized>(self, sql: &S, params: Params<'_>) -> Result<u64, QueryError> {
        let changed = async {
            let mut rows = pin!(self.start(sql, params).await?);
            while next(rows.as_mut()).await?.is_some() {}
            Ok(rows.rows_affected().unwrap_or(0))
        };
        self.track.finish(self.begin(sql)?, changed).await
    }

    pub async fn batch_execute(self, sql: &str) -> Result<(), QueryError> {
        self.track.run(Some(sql), self.client.batch_execute(sql)).await
    }

    pub async fn copy_in<S: Sql + ?Sized>(self, sql: &'a S) -> Result<CopyIn<'a>, QueryError> {
        let running = self.begin(sql)?;
        let held = self.track.known.doubts.hold_stream();
        // Not tried again: a refusal puts the driver out of step.
        let sink = async { self.client.copy_in(&*self.attempt(sql).await?).await };
        CopyIn::begin(self.client, self.track, running, held, sink).await
    }

    pub async fn copy_out<S: Sql + ?Sized>(self, sql: &'a S) -> Result<CopyOut<'a>, QueryError> {
        let running = self.begin(sql)?;
        let held = self.track.known.doubts.hold_stream();
        let data = async {
            let mut attempt = self.attempt(sql).await?;
            loop {
                match self.client.copy_out(&*attempt).await {
                    Err(error) => attempt = self.again(attempt, error).await?,
                    data => return data,
                }
            }
        };
        let (data, running) = self.track.begun(running, data).await?;
        Ok(CopyOut::new(data, running, held, self.track.limit))
    }

    pub async fn prepare_cached(self, sql: &str) -> Result<Statement, QueryError> {
        let statement = async { self.prepared(self.track.known.cache.prepare(self.client, sql).await) };
        self.track.prepare(sql, statement).await
    }

    fn begin<'s, S: Sql + ?Sized>(self, sql: &'s S) -> Result<Running<'a, 's>, QueryError> {
        let sends = if matches!(sql.form(), Form::Text(_)) { Sends::Text } else { Sends::Statement };
        self.track.begin(sql.text(), sends)
    }

    /// Sends a statement, and once more if it had become stale; resolves before its first row.
    async fn start<S, P>(self, sql: &S, params: &[P]) -> Result<RowStream, Error>
    where
        S: Sql + ?Sized,
        P: BorrowToSql,
    {
        let mut attempt = self.attempt(sql).await?;
        loop {
            match self.client.query_raw(&*attempt, params.iter().map(Param)).await {
                Err(error) => attempt = self.again(attempt, error).await?,
                rows => return rows,
            }
        }
    }

    async fn attempt<S: Sql + ?Sized>(self, sql: &S) -> Result<Attempt, Error> {
        match sql.form() {
            Form::Text(text) => self.prepared(self.client.prepare(text).await).map(Attempt::Last),
            Form::Driver(statement) => Ok(Attempt::Last(statement.clone())),
            Form::Cached(statement) => self.current(statement).await.map(Attempt::Cached),
        }
    }

    async fn current(self, statement: &Statement) -> Result<Statement, Error> {
        self.prepared(self.track.known.cache.current(self.client, statement).await)
    }

    /// What to send after this error, if anything: outside a transaction a stale statement has done nothing, and one that
    /// was prepared anew may do better. In a transaction the error has ended that.
    async fn again(self, attempt: Attempt, error: Error) -> Result<Attempt, Error> {
        let (Attempt::Cached(statement), true) = (attempt, is_stale(&error)) else { return Err(error) };
        let known = self.track.known;
        known.cache.forget();
        // The end of the answer tells whether a transaction is open.
        self.client.check_connection().await?;
        if !known.status.is_idle() {
            return Err(error);
        }
        self.current(&statement).await.map(|statement| Attempt::Last((*statement).clone()))
    }

    /// tokio-postgres keeps statements of its own, to look types up with, and cannot be told that the server has forgotten
    /// them: this session is of no more use then.
    fn prepared<T>(self, prepared: Result<T, Error>) -> Result<T, Error> {
        prepared.inspect_err(|error| {
            if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME) {
                self.track.known.doubts.add(Doubt::Lost);
            }
        })
    }
}

pub(super) type Params<'p> = &'p [&'p (dyn ToSql + Sync)];

async fn next(mut rows: Pin<&mut RowStream>) -> Result<Option<Row>, Error> {
    poll_fn(|cx: &mut Context<'_>| Poll::Ready(ready!(rows.as_mut().poll_next(cx)).transpose())).await
}

/// A parameter that can be sent twice.
#[derive(Clone, Copy)]
struct Param<'p, P>(&'p P);

impl<P: BorrowToSql> fmt::Debug for Param<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.borrow_to_sql().fmt(f)
    }
}

impl<P: BorrowToSql> ToSql for Param<'_, P> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        self.0.borrow_to_sql().to_sql_checked(ty, out)
    }

    /// The parameter itself is asked, when it is sent.
    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        self.0.borrow_to_sql().to_sql_checked(ty, out)
    }

    fn encode_format(&self, ty: &Type) -> Format {
        self.0.borrow_to_sql().encode_format(ty)
    }
}
