//! The pool over a real PostgreSQL, which counts connections itself: its role has `CONNECTION LIMIT` = `max_size`.

#![cfg(feature = "postgres")]

mod support;

use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use support::eventually;
use support::postgres::{Options, PostgresServer, StopMode};
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Config, NoTls};
use tower_adaptive_pool::postgres::Transaction;
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, Builder, Connection, Controller, Deadline, Decision, Event, Gate, Observer,
    Postgres, QueryError, Reason, Sample,
};

const SOON: Duration = Duration::from_secs(10);
/// `CONNECTION LIMIT` of the application's role: the server itself refuses one more.
const MAX_SIZE: usize = 4;

type Pool = AdaptivePool<Postgres>;

/// One server for the whole file, stopped by its supervisor when this process ends.
static SHARED: LazyLock<Arc<PostgresServer>> =
    LazyLock::new(|| Arc::new(PostgresServer::start(Options::default()).unwrap()));

/// A role of a test's own, with its own schema and its own limit.
struct Db {
    server: Arc<PostgresServer>,
    admin: Client,
    role: String,
}

impl Db {
    /// On the shared server.
    async fn start() -> Self {
        Self::on(tokio::task::spawn_blocking(|| SHARED.clone()).await.unwrap()).await
    }

    /// On a server of its own, for tests that stop it.
    async fn alone() -> Self {
        let server = tokio::task::spawn_blocking(|| PostgresServer::start(Options::default()));
        Self::on(Arc::new(server.await.unwrap().unwrap())).await
    }

    async fn on(server: Arc<PostgresServer>) -> Self {
        static ROLES: AtomicUsize = AtomicUsize::new(0);
        let role = format!("role{}", ROLES.fetch_add(1, Relaxed));
        let mut superuser: Config = server.superuser_url().parse().unwrap();
        let (admin, connection) = superuser.dbname("app").connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        let sql = format!(
            "create role {role} login password 'secret' connection limit {MAX_SIZE}; create schema authorization {role}"
        );
        admin.batch_execute(&sql).await.unwrap();
        Self { server, admin, role }
    }

    fn config(&self) -> Config {
        let mut config: Config = self.server.app_url().parse().unwrap();
        config.user(&self.role).password("secret");
        config
    }

    fn builder(&self, backend: impl FnOnce(Postgres) -> Postgres) -> Builder<Postgres> {
        let backend = backend(Postgres::new(self.config(), NoTls));
        AdaptivePool::builder(backend).min_size(1).max_size(MAX_SIZE).acquire_timeout(SOON)
    }

    async fn pool(&self) -> Pool {
        open(self.builder(|backend| backend)).await
    }

    /// Backends of this test's role, as the server counts them.
    async fn backends(&self) -> i64 {
        let count = "select count(*) from pg_stat_activity where usename = $1";
        self.admin.query_one(count, &[&self.role]).await.unwrap().get(0)
    }

    /// `idle`, `idle in transaction`, …
    async fn state_of(&self, pid: i32) -> String {
        let sql = "select state from pg_stat_activity where pid = $1";
        self.admin.query_one(sql, &[&pid]).await.unwrap().get(0)
    }

    fn assert_never_too_many(&self) {
        let refusal = format!("too many connections for role \"{}\"", self.role);
        assert_eq!(self.server.count_in_log(&refusal), 0, "{}", self.server.log());
    }
}

async fn open(builder: Builder<Postgres>) -> Pool {
    let pool = builder.build().unwrap();
    pool.ready().await.unwrap();
    pool
}

async fn pid(connection: &Connection<Postgres>) -> i32 {
    connection.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn queries_of_every_kind_bring_their_rows_and_are_counted() {
    let db = Db::start().await;
    let pool = db.pool().await;
    let mut connection = pool.acquire().await.unwrap();
    connection.batch_execute("create table t (id int primary key, name text)").await.unwrap();
    let insert = connection.prepare_cached("insert into t values ($1, $2)").await.unwrap();
    for id in 0..5 {
        assert_eq!(connection.execute(&insert, &[&id, &"x"]).await.unwrap(), 1);
    }
    assert_eq!(connection.query("select * from t", &[]).await.unwrap().len(), 5);
    assert!(connection.query_opt("select 1 from t where id = $1", &[&99]).await.unwrap().is_none());
    let rows = connection.query_raw("select id from t order by id", Vec::<i32>::new()).await.unwrap();
    let ids: Vec<i32> = rows.map(|row| row.unwrap().get::<_, i32>(0)).collect().await;
    assert_eq!(ids, [0, 1, 2, 3, 4]);

    let transaction = connection.transaction().await.unwrap();
    transaction.execute("delete from t", &[]).await.unwrap();
    transaction.rollback().await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    transaction.execute("delete from t where id = 0", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    let left: i64 = connection.query_one("select count(*) from t", &[]).await.unwrap().get(0);
    assert_eq!(left, 4);

    let error = connection.query("select no_such_column", &[]).await.unwrap_err();
    assert_eq!(error.code(), "42703");
    drop(connection);

    let queries = pool.snapshot().queries;
    // batch, 5 inserts, 3 selects, (begin, delete, end) twice, count: 16; a cached statement is no query.
    assert_eq!((queries.started, queries.ok, queries.failed), (17, 16, 1));
    // An error of the server leaves the connection as good as it was.
    eventually(SOON, async || pool.snapshot().idle == 1).await;
}

#[tokio::test]
async fn the_clean_path_sends_nothing_between_two_users() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let first = pool.acquire().await.unwrap();
    let pid = pid(&first).await;
    first.query_one("select 'the last word'", &[]).await.unwrap();
    drop(first);
    let _second = pool.acquire().await.unwrap();
    let last =
        db.admin.query_one("select query from pg_stat_activity where pid = $1", &[&pid]).await.unwrap();
    assert_eq!(last.get::<_, &str>(0), "select 'the last word'");
}

/// Longer than any test waits: only a cancel ends it.
const FOR_EVER: &str = "select pg_sleep(3600)";

#[tokio::test]
async fn a_query_that_takes_too_long_times_out_and_frees_the_server() {
    let db = Db::start().await;
    let limit = Duration::from_millis(100);
    let pool = open(db.builder(|backend| backend.query_timeout(limit)).max_size(1)).await;
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    let error = connection.query(FOR_EVER, &[]).await.unwrap_err();
    assert!(matches!(error, QueryError::Timeout(after) if after == limit), "{error}");
    drop(connection);
    assert_eq!(
        (pool.snapshot().in_use, pool.snapshot().idle),
        (1, 0),
        "it keeps its permit until it is clean"
    );
    let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_eq!(pid(&next).await, before, "cancelled and settled, not thrown away");
    let queries = pool.snapshot().queries;
    assert_eq!((queries.timed_out, queries.started), (1, queries.ok + 1));
}

#[tokio::test]
async fn the_servers_own_time_out_counts_as_one_and_keeps_the_connection() {
    let db = Db::start().await;
    let pool = db.pool().await;
    let connection = pool.acquire().await.unwrap();
    connection.batch_execute("set statement_timeout = 50").await.unwrap();
    let error = connection.query("select pg_sleep(1)", &[]).await.unwrap_err();
    assert!(error.is_timeout());
    assert_eq!(error.code(), "57014");
    drop(connection);
    assert_eq!(pool.snapshot().queries.timed_out, 1);
    eventually(SOON, async || pool.snapshot().idle == 1).await;
}

#[tokio::test]
async fn clean_hand_over_after_a_query_dropped_by_its_caller_it_is_cancelled_on_the_server() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let mut connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    for after in [Duration::ZERO, Duration::from_millis(50)] {
        {
            let mut query = pin!(connection.query(FOR_EVER, &[]));
            // Polled once, its bytes are only queued; later, it runs.
            assert!(query.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let _ = timeout(after, &mut query).await;
        }
        drop(connection);
        connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_eq!(pid(&connection).await, before);
    }
    assert_eq!(pool.snapshot().queries.cancelled, 2);

    let rows =
        connection.query_raw("select generate_series(1, 1000000000)", Vec::<i32>::new()).await.unwrap();
    let mut rows = Box::pin(rows);
    rows.next().await.unwrap().unwrap();
    drop(rows);
    drop(connection);
    let connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_eq!(pid(&connection).await, before);
    assert_eq!(pool.snapshot().queries.cancelled, 3);
}

#[tokio::test]
async fn a_stream_of_rows_has_the_time_out_between_two_rows() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend.query_timeout(Duration::from_millis(200)))).await;
    let connection = pool.acquire().await.unwrap();
    // The first rows come at once (more of them than fit in the server's buffer), then nothing for a second.
    let sql = "select repeat('x', 1000) from generate_series(1, 100) union all select pg_sleep(1)::text";
    let rows = connection.query_raw(sql, Vec::<i32>::new()).await.unwrap();
    let all: Vec<_> = Box::pin(rows).collect().await;
    let (last, first) = all.split_last().unwrap();
    assert!(first.len() > 10 && first.iter().all(Result::is_ok));
    assert!(matches!(last, Err(QueryError::Timeout(_))));
}

#[tokio::test]
async fn a_dropped_transaction_is_rolled_back_before_the_next_user() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let mut connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    connection.batch_execute("create table t (id int)").await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    transaction.execute("insert into t values (1)", &[]).await.unwrap();
    drop(transaction);
    drop(connection);
    let next = pool.acquire().await.unwrap();
    assert_eq!(pid(&next).await, before, "settled, not thrown away");
    assert_eq!(db.state_of(before).await, "idle");
    assert!(next.query("select * from t", &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_transaction_begun_as_text_is_rolled_back_before_the_next_user() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    for left_open in ["begin; select 1", "begin; select no_such_column"] {
        let connection = pool.acquire().await.unwrap();
        let before = pid(&connection).await;
        let _ = connection.batch_execute(left_open).await;
        drop(connection);
        let next = pool.acquire().await.unwrap();
        assert_eq!(pid(&next).await, before);
        assert_eq!(db.state_of(before).await, "idle", "after {left_open:?}");
    }
}

#[tokio::test]
async fn a_connection_used_raw_is_not_handed_on() {
    let db = Db::start().await;
    let pool = db.pool().await;
    let mut connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    connection.raw().batch_execute("set search_path = nowhere").await.unwrap();
    drop(connection);
    assert_ne!(pid(&pool.acquire().await.unwrap()).await, before);
}

#[tokio::test]
async fn a_parameter_that_cannot_be_sent_costs_no_connection() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    connection.query("select $1::int", &[&"not a number"]).await.unwrap_err();
    drop(connection);
    assert_eq!(pid(&pool.acquire().await.unwrap()).await, before);
}

#[tokio::test]
async fn a_backend_killed_while_idle_costs_the_next_caller_nothing() {
    let db = Db::start().await;
    let pool = db.pool().await;
    for _ in 0..5 {
        let victim = pid(&pool.acquire().await.unwrap()).await;
        db.admin.execute("select pg_terminate_backend($1)", &[&victim]).await.unwrap();
        // Nobody asks, and it is replaced all the same: the pool hears the server's goodbye and keeps min_size warm.
        eventually(SOON, async || {
            let replaced = "select count(*) = 1 from pg_stat_activity where usename = $1 and pid <> $2";
            let there: bool = db.admin.query_one(replaced, &[&db.role, &victim]).await.unwrap().get(0);
            there && pool.snapshot().idle == 1
        })
        .await;
        let next = pool.acquire().await.unwrap();
        assert_ne!(pid(&next).await, victim);
    }
    db.assert_never_too_many();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ceiling_as_the_server_counts_it_whatever_happens() {
    let db = Db::start().await;
    let pool = open(
        db.builder(|backend| backend.query_timeout(Duration::from_millis(20)))
            .min_size(2)
            .max_dialing(MAX_SIZE),
    )
    .await;
    let users: Vec<_> = (0..16u32)
        .map(|user| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for turn in 0..40u32 {
                    let Ok(mut connection) = pool.acquire().await else { continue };
                    match (user + turn) % 5 {
                        // Served.
                        0 => drop(connection.query("select 1", &[]).await),
                        // Thrown away: time-out, dropped query, raw use, open transaction.
                        1 => drop(connection.query("select pg_sleep(0.05)", &[]).await),
                        2 => {
                            let query = connection.query("select pg_sleep(0.05)", &[]);
                            let _ = timeout(Duration::from_millis(5), query).await;
                        }
                        3 => drop(connection.raw()),
                        _ => drop(connection.transaction().await),
                    }
                }
            })
        })
        .collect();
    for user in users {
        user.await.unwrap();
    }
    db.assert_never_too_many();
    pool.drain(SOON).await.unwrap();
    assert_eq!(db.backends().await, 0, "drain resolves when the server has let go");
    let seen = pool.snapshot();
    assert_eq!(seen.acquires.waiting(), 0);
    let queries = seen.queries;
    assert_eq!(queries.started, queries.ok + queries.failed + queries.timed_out + queries.cancelled);
    assert_eq!((seen.size, seen.written_off), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_server_the_pool_heals_by_itself() {
    let db = Db::alone().await;
    let pool = open(db.builder(|backend| backend).min_size(3)).await;
    for mode in [StopMode::Fast, StopMode::Immediate] {
        db.server.stop(mode).unwrap();
        eventually(SOON, async || pool.snapshot().dial_failures > 0).await;
        db.server.start_again().unwrap();
        eventually(SOON, async || match pool.acquire().await {
            Ok(connection) => connection.query("select 1", &[]).await.is_ok(),
            Err(_) => false,
        })
        .await;
    }
    db.assert_never_too_many();
}

#[tokio::test]
async fn ready_says_what_is_wrong_with_the_password_the_port_and_the_name() {
    let db = Db::alone().await;
    let said = async |config: Config| {
        let pool = AdaptivePool::builder(Postgres::new(config, NoTls))
            .dial_timeout(Duration::from_secs(2))
            .build()
            .unwrap();
        pool.ready().await.unwrap_err().to_string()
    };
    let mut wrong = db.config();
    wrong.password("wrong");
    let sentence = said(wrong).await;
    let expected = format!("password authentication failed for user \"{}\" (28P01)", db.role);
    assert!(sentence.ends_with(&expected), "{sentence}");
    let mut wrong = db.config();
    wrong.dbname("nowhere");
    let sentence = said(wrong).await;
    assert!(sentence.ends_with("database \"nowhere\" does not exist (3D000)"), "{sentence}");
    db.server.stop(StopMode::Fast).unwrap();
    let sentence = said(db.config()).await;
    assert!(sentence.contains("the database cannot be reached: Connection refused"), "{sentence}");
}

#[tokio::test]
async fn a_unix_socket_works() {
    let db = Db::start().await;
    let mut config = Config::new();
    config.host_path(db.server.socket_dir()).port(db.server.port());
    config.user(&db.role).dbname("app").password("secret");
    let pool = open(AdaptivePool::builder(Postgres::new(config, NoTls)).min_size(1).max_size(MAX_SIZE)).await;
    let connection = pool.acquire().await.unwrap();
    let row = connection.query_one("select inet_server_addr() is null", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0), "no address: not by TCP");
    drop(connection);
    pool.drain(SOON).await.unwrap();
}

#[tokio::test]
async fn what_is_not_supported_is_a_config_error_that_says_so() {
    let urls = [
        ("postgres://a@one,two/db", "host (2 hosts) must be one: several hosts are not supported yet"),
        (
            "postgres://a@one/db?target_session_attrs=read-write",
            "target_session_attrs (ReadWrite) must be any: others are not supported yet",
        ),
        (
            "postgres://a@one/db?load_balance_hosts=random",
            "load_balance_hosts (random) must be disable: there is one host",
        ),
        ("user=a dbname=db", "host (none) must be set: one host name, address or socket directory"),
    ];
    for (url, sentence) in urls {
        let error = AdaptivePool::builder(Postgres::new(url.parse().unwrap(), NoTls)).build().unwrap_err();
        assert_eq!(error.to_string(), sentence);
    }
    let backend = Postgres::new("postgres://a@one/db".parse().unwrap(), NoTls).query_timeout(Duration::ZERO);
    let error = AdaptivePool::builder(backend).min_size(0).build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "query_timeout (0 s) must be longer than zero; min_size (0) must be at least 1 connection"
    );
}

#[tokio::test]
async fn an_acquire_in_vain_says_why_no_connection_could_be_opened() {
    let db = Db::alone().await;
    let config = db.config();
    db.server.stop(StopMode::Fast).unwrap();
    let pool = AdaptivePool::builder(Postgres::new(config, NoTls))
        .acquire_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert_eq!(error.code(), "pool_dial_failed");
    let said = error.to_string();
    assert!(said.contains("the database cannot be reached"), "{said}");
}

#[tokio::test]
async fn a_query_time_out_makes_a_client_span_afterwards_with_its_true_start() {
    use opentelemetry::trace::{SpanKind, Status};
    use opentelemetry_sdk::metrics::SdkMeterProvider;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
    use tower_adaptive_pool::Otel;

    let spans = InMemorySpanExporter::default();
    let tracers = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let otel = Otel::new(tracers, &SdkMeterProvider::default());
    let db = Db::start().await;
    let limit = Duration::from_millis(150);
    let pool = open(db.builder(|backend| backend.query_timeout(limit)).name("orders").observer(otel)).await;
    let connection = pool.acquire().await.unwrap();
    connection.query("select 1", &[]).await.unwrap();
    assert!(spans.get_finished_spans().unwrap().is_empty(), "a good query makes none");

    let sql = "select pg_sleep($1)";
    connection.query(sql, &[&2.0_f64]).await.unwrap_err();
    let spans = spans.get_finished_spans().unwrap();
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((&*span.name, &span.span_kind), ("SELECT", &SpanKind::Client));
    assert!(matches!(span.status, Status::Error { .. }));
    let lasted = span.end_time.duration_since(span.start_time).unwrap();
    assert!(lasted >= limit && lasted < limit * 3, "{lasted:?}");
    let attribute = |key: &str| {
        let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
        found.unwrap_or_else(|| panic!("{key} in {span:?}")).value.to_string()
    };
    assert_eq!(attribute("db.query.text"), sql, "the text, never the parameters");
    assert_eq!(attribute("error.type"), "timeout");
    assert_eq!(attribute("db.system.name"), "postgresql");
    assert_eq!(attribute("db.namespace"), "app");
    assert_eq!(attribute("server.address"), "127.0.0.1");
    assert_eq!(attribute("db.client.connection.pool.name"), "orders");
}

#[tokio::test]
async fn committing_a_failed_transaction_says_that_it_was_rolled_back() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let mut connection = pool.acquire().await.unwrap();
    connection.batch_execute("create table t (id int primary key)").await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    transaction.execute("insert into t values (1)", &[]).await.unwrap();
    transaction.execute("insert into t values (1)", &[]).await.unwrap_err();
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, QueryError::RolledBack), "{error}");
    assert_eq!(error.code(), "25P02");
    // An error on our side alone has not hurt the transaction.
    let transaction = connection.transaction().await.unwrap();
    transaction.execute("insert into t values ($1)", &[&"no number"]).await.unwrap_err();
    transaction.execute("insert into t values (2)", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    let stored = connection.query("select id from t", &[]).await.unwrap();
    assert_eq!(stored.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [2]);
}

/// Keeps the slow queries it is told of.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<Told>>);

type Told = Vec<(Option<String>, Duration)>;

impl Observer for Slow {
    fn on_event(&self, _: &Gate, event: &Event<'_>) {
        if let Event::SlowQuery { ran, text, .. } = event {
            self.0.lock().unwrap().push((text.map(str::to_owned), *ran));
        }
    }
}

#[tokio::test]
async fn a_slow_query_is_told_with_its_text_and_never_its_parameters() {
    let db = Db::start().await;
    let slow = Slow::default();
    let bound = Duration::from_millis(50);
    let pool = open(db.builder(|backend| backend.slow_query_after(bound)).observer(slow.clone())).await;
    let connection = pool.acquire().await.unwrap();
    connection.query("select 1", &[]).await.unwrap();
    connection.query("select pg_sleep($1)", &[&0.06_f64]).await.unwrap();
    let told = slow.0.lock().unwrap().clone();
    let [(text, ran)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(text.as_deref(), Some("select pg_sleep($1)"));
    assert!(*ran >= Duration::from_millis(60));
}

#[tokio::test]
async fn in_transaction_commits_what_is_ok_and_undoes_what_fails_panics_or_is_dropped() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let mut connection = pool.acquire().await.unwrap();
    connection.batch_execute("create table t (id int)").await.unwrap();
    let insert =
        async |connection: &mut Connection<Postgres>, id: i32, end: fn() -> Result<(), QueryError>| {
            connection
                .in_transaction(async |transaction| {
                    transaction.execute("insert into t values ($1)", &[&id]).await?;
                    end()
                })
                .await
        };
    insert(&mut connection, 1, || Ok(())).await.unwrap();
    insert(&mut connection, 2, || Err(QueryError::RolledBack)).await.unwrap_err();
    drop(connection);

    // Spawned, so the future is `Send`, and its panic is its own.
    let panicking = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut connection = pool.acquire().await.unwrap();
            let work = async |transaction: &mut Transaction<'_>| -> Result<(), QueryError> {
                transaction.execute("insert into t values (3)", &[]).await?;
                panic!("as asked")
            };
            connection.in_transaction(work).await
        }
    });
    assert!(panicking.await.unwrap_err().is_panic());
    let mut connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    let dropped = connection.in_transaction(async |transaction| {
        transaction.execute("insert into t values (4)", &[]).await?;
        transaction.query(FOR_EVER, &[]).await
    });
    timeout(Duration::from_millis(50), dropped).await.expect_err("it never ends");
    drop(connection);
    let connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    let stored = connection.query("select id from t", &[]).await.unwrap();
    assert_eq!(stored.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_full_server_is_not_hammered_and_the_pool_stays_with_what_it_has() {
    let db = Db::start().await;
    // The pool believes in more than its role may have.
    let pool = open(db.builder(|backend| backend).min_size(MAX_SIZE - 1).max_size(MAX_SIZE + 4)).await;
    let one_more = db.config().connect(NoTls).await.unwrap();
    let users: Vec<_> = (0..20)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    pool.acquire().await.unwrap().query("select pg_sleep(0.02)", &[]).await.unwrap();
                }
            })
        })
        .collect();
    for user in users {
        user.await.unwrap();
    }
    let refusal = format!("too many connections for role \"{}\"", db.role);
    let refused = db.server.count_in_log(&refusal);
    assert!((1..=6).contains(&refused), "one ask a second or so, not hundreds: {refused}");
    drop(one_more);
}

#[tokio::test]
async fn ready_says_at_once_that_the_password_is_wrong() {
    let db = Db::start().await;
    let mut config = db.config();
    config.password("wrong");
    let pool = AdaptivePool::builder(Postgres::new(config, NoTls)).dial_timeout(SOON * 6).build().unwrap();
    let error = timeout(SOON, pool.ready()).await.expect("long before its deadline").unwrap_err();
    assert!(error.to_string().contains("28P01"), "{error}");
}

#[tokio::test]
async fn a_connection_to_a_server_that_became_read_only_is_not_handed_on() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    connection
        .batch_execute("create table t (id int); set default_transaction_read_only = on")
        .await
        .unwrap();
    let error = connection.execute("insert into t values (1)", &[]).await.unwrap_err();
    assert_eq!(error.code(), "25006");
    drop(connection);
    let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_ne!(pid(&next).await, before, "dialed anew: the primary may be elsewhere");
    assert_eq!(next.execute("insert into t values (1)", &[]).await.unwrap(), 1);
}

/// The server can write, and whoever said that this transaction cannot meant it.
#[tokio::test]
async fn a_write_in_a_deliberate_read_only_transaction_costs_no_connection() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let mut connection = pool.acquire().await.unwrap();
    connection.batch_execute("create table t (id int)").await.unwrap();
    let before = pid(&connection).await;
    let write = "insert into t values (1)";
    for by in ["begin read only", "set transaction read only", "set local transaction_read_only = on"] {
        if by.starts_with("begin") {
            let error = connection.batch_execute(&format!("{by}; {write}")).await.unwrap_err();
            assert_eq!(error.code(), "25006");
        } else {
            let transaction = connection.transaction().await.unwrap();
            transaction.batch_execute(by).await.unwrap();
            assert_eq!(transaction.execute(write, &[]).await.unwrap_err().code(), "25006");
        }
        drop(connection);
        connection = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_eq!(pid(&connection).await, before, "{by}");
        assert_eq!(connection.execute(write, &[]).await.unwrap(), 1);
    }
    drop(connection);

    // So does a role that may only read.
    let sql = format!("alter role {} set default_transaction_read_only = on", db.role);
    db.admin.batch_execute(&sql).await.unwrap();
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let connection = pool.acquire().await.unwrap();
    let before = pid(&connection).await;
    assert_eq!(connection.execute(write, &[]).await.unwrap_err().code(), "25006");
    drop(connection);
    assert_eq!(pid(&timeout(SOON, pool.acquire()).await.unwrap().unwrap()).await, before);
}

#[tokio::test]
async fn a_connection_to_a_standby_is_not_handed_on() {
    let db = Db::alone().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    pool.acquire().await.unwrap().batch_execute("create table t (id int)").await.unwrap();
    let server = db.server.clone();
    tokio::task::spawn_blocking(move || {
        server.stop(StopMode::Fast).unwrap();
        std::fs::write(server.socket_dir().join("data/standby.signal"), "").unwrap();
        server.start_again().unwrap();
    })
    .await
    .unwrap();
    let mut connection = None;
    eventually(SOON, async || {
        connection = pool.acquire().await.ok();
        connection.is_some()
    })
    .await;
    let connection = connection.unwrap();
    let before = pid(&connection).await;
    assert_eq!(connection.execute("insert into t values (1)", &[]).await.unwrap_err().code(), "25006");
    drop(connection);
    let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_ne!(pid(&next).await, before, "dialed anew: the primary may be elsewhere");
}

#[tokio::test]
async fn the_server_has_limits_of_its_own_unless_somebody_set_others() {
    let db = Db::start().await;
    let shown = async |pool: &Pool, name: &str| -> String {
        let connection = pool.acquire().await.unwrap();
        connection.query_one(&format!("show {name}"), &[]).await.unwrap().get(0)
    };
    let pool = open(db.builder(|backend| backend.query_timeout(Duration::from_secs(3)))).await;
    assert_eq!(shown(&pool, "statement_timeout").await, "6s");
    assert_eq!(shown(&pool, "client_connection_check_interval").await, "2s");

    db.admin.batch_execute(&format!("alter role {} set statement_timeout = '77s'", db.role)).await.unwrap();
    let pool = db.pool().await;
    assert_eq!(shown(&pool, "statement_timeout").await, "77s");
    let pool = open(db.builder(|backend| backend.query_timeout(Duration::MAX))).await;
    assert_eq!(shown(&pool, "statement_timeout").await, "77s");
}

#[tokio::test]
async fn a_pool_of_one_that_waits_for_itself_in_a_transaction_says_who_holds_it_and_undoes_the_transaction() {
    let db = Db::start().await;
    let pool =
        open(db.builder(|backend| backend).max_size(1).acquire_timeout(Duration::from_millis(200))).await;
    let mut connection = pool.acquire().await.unwrap();
    connection.batch_execute("create table t (id int)").await.unwrap();
    let outcome: Result<(), Box<dyn std::error::Error>> = async {
        let work = async |transaction: &mut Transaction<'_>| {
            transaction.execute("insert into t values (1)", &[]).await?;
            // Instead of `transaction`, which is there.
            let second = pool.acquire().await?;
            second.execute("insert into t values (2)", &[]).await?;
            Ok::<_, Box<dyn std::error::Error>>(())
        };
        connection.in_transaction(work).await
    }
    .await;
    let said = outcome.unwrap_err().to_string();
    assert!(
        said.contains("1 of at most 1 in use") && said.contains("acquired at tests/postgres.rs"),
        "{said}"
    );
    drop(connection);
    let next = pool.acquire().await.unwrap();
    assert!(next.query("select * from t", &[]).await.unwrap().is_empty(), "undone");
}

#[tokio::test]
async fn a_connection_kept_over_a_drain_and_over_its_pool_serves_to_its_end() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(2)).await;
    let kept = pool.acquire().await.unwrap();
    let late = pool.drain(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!((late.in_use, late.to_string().contains("1 connections in use")), (1, true), "{late}");
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    drop(pool);
    pid(&kept).await;
    drop(kept);
    eventually(SOON, async || db.backends().await == 0).await;
}

/// A stop whose every word reaches the client: raised by the server itself, so that no socket closes meanwhile.
#[tokio::test]
async fn a_connection_whose_server_says_that_it_stops_is_not_handed_on() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    for code in ["57P01", "57P02"] {
        let connection = pool.acquire().await.unwrap();
        let before = pid(&connection).await;
        let sql = format!("do $$ begin raise exception 'stopping' using errcode = '{code}'; end $$");
        assert_eq!(connection.batch_execute(&sql).await.unwrap_err().code(), code);
        drop(connection);
        let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_ne!(pid(&next).await, before, "after {code}");
    }
    // Any other error costs no connection.
    for code in ["57P03", "53300", "28000", "3D000", "57014", "40001"] {
        let connection = pool.acquire().await.unwrap();
        let before = pid(&connection).await;
        let sql = format!("do $$ begin raise exception 'no' using errcode = '{code}'; end $$");
        assert_eq!(connection.batch_execute(&sql).await.unwrap_err().code(), code);
        drop(connection);
        let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_eq!(pid(&next).await, before, "after {code}");
    }
    assert_eq!(pool.snapshot().queries.timed_out, 1);
}

/// A server that answers each dial with this SQLSTATE.
async fn refusing(code: &'static str) -> Config {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let said = format!("SFATAL\0VFATAL\0C{code}\0Mno\0\0");
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 1024]).await;
            let length = (said.len() as u32 + 4).to_be_bytes();
            let _ = socket.write_all(&[b"E", &length[..], said.as_bytes()].concat()).await;
        }
    });
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("app");
    config
}

#[tokio::test]
async fn each_refusal_of_a_dial_has_its_own_pace() {
    let started = Instant::now();
    let mut slow = Vec::new();
    for (code, at_least) in [("28P01", 1.0), ("28000", 1.0), ("3D000", 1.0), ("53300", 0.5)] {
        let backend = Postgres::new(refusing(code).await, NoTls);
        slow.push((code, at_least, AdaptivePool::builder(backend).min_size(1).build().unwrap()));
    }
    for code in ["57P01", "57P02", "57P03", "XX000"] {
        let backend = Postgres::new(refusing(code).await, NoTls);
        let pool = AdaptivePool::builder(backend).min_size(1).build().unwrap();
        eventually(SOON, async || pool.snapshot().dial_failures >= 5).await;
    }
    for (code, pause, pool) in slow {
        eventually(SOON, async || pool.snapshot().dial_failures > 0).await;
        let asked = pool.snapshot().dial_failures;
        let most = 1 + (started.elapsed().as_secs_f64() / pause) as u64;
        assert!(asked <= most, "{code}: asked {asked} times, {most} at most");
    }
}

/// Waits until this deadline has passed.
async fn pass(deadline: Deadline) {
    eventually(SOON, async || deadline.remaining().is_zero()).await;
}

#[tokio::test]
async fn a_requests_deadline_bounds_its_queries_together_and_the_next_user_gets_the_connection_unharmed() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend.query_timeout(SOON)).max_size(1)).await;
    let budget = Duration::from_millis(300);
    let asked = Instant::now();
    let connection = pool.acquire_with(Deadline::within(budget)).await.unwrap();
    let before = pid(&connection).await;
    connection.query("select pg_sleep(0.1)", &[]).await.unwrap();
    let error = connection.query(FOR_EVER, &[]).await.unwrap_err();
    // What came before has used up its part.
    assert!(matches!(error, QueryError::Timeout(after) if after < budget), "{error}");
    assert!((budget..SOON / 2).contains(&asked.elapsed()), "{:?}", asked.elapsed());

    drop(connection);
    let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
    assert_eq!(pid(&next).await, before, "cancelled and settled, not thrown away");
    next.query("select pg_sleep(0.4)", &[]).await.expect("the deadline was that of another request");
    let queries = pool.snapshot().queries;
    assert_eq!((queries.timed_out, queries.started), (1, queries.ok + 1));
    // The server has ended it: nobody sleeps any more.
    let sleeping = "select count(*) from pg_stat_activity where usename = $1 and state = 'active'";
    let sleeping: i64 = db.admin.query_one(sleeping, &[&db.role]).await.unwrap().get(0);
    assert_eq!(sleeping, 0);
}

#[tokio::test]
async fn a_deadline_that_has_passed_sends_nothing() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let deadline = Deadline::within(Duration::from_millis(200));
    let mut connection = pool.acquire_with(deadline).await.unwrap();
    let pid = pid(&connection).await;
    connection.batch_execute("create table t (id int)").await.unwrap();
    connection.query_one("select 'the last word'", &[]).await.unwrap();
    pass(deadline).await;

    let insert = "insert into t values (1)";
    let mut outcomes = vec![
        connection.query(insert, &[]).await.err(),
        connection.query_opt(insert, &[]).await.err(),
        connection.query_one(insert, &[]).await.err(),
        connection.execute(insert, &[]).await.err(),
        connection.batch_execute(insert).await.err(),
        connection.query_raw(insert, Vec::<i32>::new()).await.err(),
        connection.copy_in("copy t from stdin").await.err(),
        connection.copy_out("copy t to stdout").await.err(),
        connection.prepare_cached(insert).await.err(),
    ];
    outcomes.push(connection.transaction().await.err());
    for (number, outcome) in outcomes.iter().enumerate() {
        assert!(matches!(outcome, Some(QueryError::Timeout(_))), "{number}: {outcome:?}");
    }
    let last = "select query from pg_stat_activity where pid = $1";
    let last: String = db.admin.query_one(last, &[&pid]).await.unwrap().get(0);
    assert_eq!(last, "select 'the last word'");
    let queries = pool.snapshot().queries;
    assert_eq!((queries.timed_out, queries.ok, queries.started), (10, 3, 13));

    // Nothing was sent, so there is nothing to settle either.
    drop(connection);
    assert_eq!(pool.snapshot().idle, 1);
    let next = pool.acquire().await.unwrap();
    assert!(next.query("select * from t", &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_commit_after_the_deadline_is_not_sent_and_the_transaction_is_rolled_back() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    pool.acquire().await.unwrap().batch_execute("create table t (id int)").await.unwrap();
    for by_hand in [true, false] {
        let deadline = Deadline::within(Duration::from_millis(200));
        let mut connection = pool.acquire_with(deadline).await.unwrap();
        let before = pid(&connection).await;
        let error = if by_hand {
            let transaction = connection.transaction().await.unwrap();
            transaction.execute("insert into t values (1)", &[]).await.unwrap();
            pass(deadline).await;
            transaction.commit().await.unwrap_err()
        } else {
            let work = async |transaction: &mut Transaction<'_>| {
                transaction.execute("insert into t values (2)", &[]).await?;
                pass(deadline).await;
                Ok::<_, QueryError>(())
            };
            connection.in_transaction(work).await.unwrap_err()
        };
        assert!(matches!(error, QueryError::Timeout(_)), "{error}");

        drop(connection);
        let next = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_eq!((pid(&next).await, db.state_of(before).await.as_str()), (before, "idle"));
        assert!(next.query("select * from t", &[]).await.unwrap().is_empty(), "undone");
    }
    // In time it is committed.
    let mut connection = pool.acquire_with(Deadline::within(SOON)).await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    transaction.execute("insert into t values (3)", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(connection.query("select * from t", &[]).await.unwrap().len(), 1);
}

/// Adds up the failures it is told of, and the completions.
#[derive(Clone, Default)]
struct Ends {
    failures: Arc<AtomicU64>,
    completions: Arc<AtomicU64>,
}

impl Controller for Ends {
    fn on_sample(&mut self, _: std::time::Instant, sample: &Sample) -> Decision {
        self.failures.fetch_add(sample.failures, Relaxed);
        self.completions.fetch_add(sample.completions, Relaxed);
        Decision { limit: sample.limit, reason: Reason::Steady }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_that_a_sick_server_fails_is_told_to_the_controller_once() {
    let (db, ends) = (Db::start().await, Ends::default());
    let pool = open(db.builder(|backend| backend).controller(ends.clone())).await;
    let raise = |code: &str| format!("do $$ begin raise exception 'no' using errcode = '{code}'; end $$");
    // The application's own mistakes are work done; that a disk is full, or a server out of memory, is not.
    let sick: [&[&str]; 4] =
        [&["23505", "40001", "42P01"], &["53100", "53200", "53300"], &["58030"], &["42P01"]];
    for codes in sick {
        let connection = pool.acquire().await.unwrap();
        for code in codes {
            assert!(connection.batch_execute(&raise(code)).await.is_err());
        }
        drop(connection);
    }
    // In a transaction, and told once more by its user.
    let mut connection = pool.acquire().await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    assert!(transaction.batch_execute(&raise("53200")).await.is_err());
    drop(transaction);
    connection.failed();
    drop(connection);
    eventually(SOON, async || ends.completions.load(Relaxed) == 5).await;
    assert_eq!(ends.failures.load(Relaxed), 3, "uses, not queries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_through_raw_is_measured_though_its_connection_closes() {
    let db = Db::start().await;
    let pool = db.pool().await;
    let mut connection = pool.acquire().await.unwrap();
    let pid = pid(&connection).await;
    connection.raw().batch_execute("select pg_sleep(0.03)").await.unwrap();
    drop(connection);
    eventually(SOON, async || pool.snapshot().use_time.is_some()).await;
    assert!(pool.snapshot().use_time >= Some(Duration::from_millis(30)), "{:?}", pool.snapshot().use_time);
    assert_ne!(crate::pid(&pool.acquire().await.unwrap()).await, pid, "it was closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_query_is_cut_off_is_over_at_the_deadline_and_undone() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    pool.acquire().await.unwrap().batch_execute("create table t (id int)").await.unwrap();
    let mut connection = pool.acquire_with(Deadline::within(Duration::from_millis(300))).await.unwrap();
    let (pid, began) = (pid(&connection).await, Instant::now());
    let outcome = connection
        .in_transaction(async |transaction| {
            transaction.execute("insert into t values (1)", &[]).await?;
            transaction.query("select pg_sleep(4)", &[]).await
        })
        .await;
    assert!(matches!(outcome, Err(QueryError::Timeout(_))), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "it waited for what still runs: {:?}", began.elapsed());
    drop(connection);

    let next = timeout(SOON, pool.acquire()).await.expect("cancelled and settled").unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(crate::pid(&next).await, pid);
    assert!(next.query("select * from t", &[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_never_waits_for_its_server_ends_at_the_deadline_all_the_same() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    let deadline = Deadline::within(Duration::from_millis(500));
    let connection = pool.acquire_with(deadline).await.unwrap();
    let none = Vec::<i32>::new;
    {
        let rows = connection.query_raw("select generate_series(1, 100000)", none()).await.unwrap();
        let mut rows = pin!(rows);
        rows.next().await.expect("the first row").unwrap();
        pass(deadline).await;
        // By now the rows have come, or as many as there is room for.
        let next = rows.next().await.expect("an end");
        assert!(matches!(next, Err(QueryError::Timeout(_))), "{next:?}");
        assert!(rows.next().await.is_none());
    }
    drop(connection);

    let deadline = Deadline::within(Duration::from_millis(500));
    let connection = timeout(SOON, pool.acquire_with(deadline)).await.expect("settled").unwrap();
    let copy = "copy (select generate_series(1, 100000)) to stdout";
    let mut data = pin!(connection.copy_out(copy).await.unwrap());
    data.next().await.expect("the first row").unwrap();
    pass(deadline).await;
    let next = data.next().await.expect("an end");
    assert!(matches!(next, Err(QueryError::Timeout(_))), "{next:?}");
}

#[tokio::test]
async fn a_copy_that_ends_after_the_deadline_stores_nothing_and_its_connection_goes_on() {
    let db = Db::start().await;
    let pool = open(db.builder(|backend| backend).max_size(1)).await;
    pool.acquire().await.unwrap().batch_execute("create table t (id int)").await.unwrap();
    let deadline = Deadline::within(Duration::from_millis(200));
    let connection = pool.acquire_with(deadline).await.unwrap();
    let before = pid(&connection).await;
    let mut copy = connection.copy_in("copy t from stdin").await.unwrap();
    copy.send("1\n").await.unwrap();
    pass(deadline).await;
    let late = copy.finish().await.unwrap_err();
    assert!(matches!(late, QueryError::Timeout(_)), "{late}");

    drop(connection);
    let next = timeout(SOON, pool.acquire_with(Deadline::within(SOON))).await.unwrap().unwrap();
    assert_eq!(pid(&next).await, before, "in step with the server, and settled");
    assert!(next.query("select * from t", &[]).await.unwrap().is_empty());
    let mut copy = next.copy_in("copy t from stdin").await.unwrap();
    copy.send("2\n").await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 1, "in time it is stored");
    let queries = pool.snapshot().queries;
    assert_eq!((queries.timed_out, queries.started), (1, queries.ok + 1));
}

#[cfg(feature = "axum")]
mod router {
    use axum::{Router, body::Body, extract::Path, routing::get};
    use http::{Request, StatusCode};
    use tower::ServiceExt;
    use tower_adaptive_pool::axum::{Db as Extracted, Error};
    use tower_adaptive_pool::{AdaptivePoolLayer, Class};

    use super::*;

    /// The class is the request's path, the deadline in a header; `served` is told the order of the grants.
    fn app(pool: &Pool, served: &Arc<Mutex<Vec<String>>>) -> Router {
        let layer = AdaptivePoolLayer::new(pool.clone())
            .with_classifier(|request: &Request<Body>| match request.uri().path() {
                "/critical" => Class::Critical,
                "/low" => Class::Low,
                "/background" => Class::Background,
                _ => Class::High,
            })
            .with_deadline_header("x-timeout-ms")
            .unwrap();
        let served = served.clone();
        let handler = async move |db: Extracted, Path(name): Path<String>| -> Result<String, Error> {
            let connection = db.acquire().await?;
            served.lock().unwrap().push(name.clone());
            connection.query(if name == "forever" { FOR_EVER } else { "select 1" }, &[]).await?;
            Ok(name)
        };
        Router::new().route("/{name}", get(handler)).layer(layer).with_state(pool.clone())
    }

    async fn ask(app: Router, path: &str, timeout_ms: Option<u64>) -> StatusCode {
        let mut request = Request::get(path);
        if let Some(ms) = timeout_ms {
            request = request.header("x-timeout-ms", ms);
        }
        app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn db_hands_the_class_of_its_request_on_to_the_queue() {
        let db = Db::start().await;
        let pool = open(db.builder(|backend| backend).max_size(1)).await;
        let served = Arc::default();
        let app = app(&pool, &served);
        let held = pool.acquire().await.unwrap();
        let mut requests = Vec::new();
        for (waiting, path) in ["/background", "/low", "/high", "/critical"].into_iter().enumerate() {
            requests.push(tokio::spawn(ask(app.clone(), path, None)));
            eventually(SOON, async || pool.snapshot().queue_depth == waiting + 1).await;
        }
        drop(held);
        for request in requests {
            assert_eq!(timeout(SOON, request).await.unwrap().unwrap(), StatusCode::OK);
        }
        assert_eq!(*served.lock().unwrap(), ["critical", "high", "low", "background"]);
    }

    #[tokio::test]
    async fn db_hands_the_deadline_of_its_request_on_to_acquire_and_query() {
        let db = Db::start().await;
        let pool = open(db.builder(|backend| backend.query_timeout(SOON)).max_size(1)).await;
        let app = app(&pool, &Arc::default());
        let asked = Instant::now();
        assert_eq!(ask(app.clone(), "/forever", Some(100)).await, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(pool.snapshot().queries.timed_out, 1);

        let held = timeout(SOON, pool.acquire()).await.unwrap().unwrap();
        assert_eq!(ask(app.clone(), "/high", Some(100)).await, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(pool.snapshot().acquires.timed_out, 1);
        assert!(asked.elapsed() < SOON / 2, "neither waited for the limits of the pool");
        drop(held);
        assert_eq!(ask(app.clone(), "/high", Some(0)).await, StatusCode::OK, "no limit");
        assert_eq!(ask(app, "/high", Some(5_000)).await, StatusCode::OK);
    }
}
