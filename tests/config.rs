//! Bad input: every setting that cannot be is named, with its value and with what would be right, all at once.

mod support;

use std::{
    env,
    process::{Command, Stdio},
    time::Duration,
};

use support::{
    line::{assert_ledgers_add_up, line_up, one_permit},
    sim::Sim,
};
use tower_adaptive_pool::{
    AcquireError, AdaptivePool, Backend, Builder, ConfigError, ConnectionState, Limiter, PaidGrowth, Place,
    Problem, QueueDepth, Verdict,
};

/// Where a child prints what `build()` said.
const SAID: &str = "build said: ";
/// The environment variables of the issue and their kin.
const IN_MILLISECONDS: [(&str, &str); 6] = [
    ("POOL_ACQUIRE_TIMEOUT_MS", "acquire_timeout"),
    ("POOL_MAX_RETRY_AFTER_MS", "max_retry_after"),
    ("POOL_DIAL_TIMEOUT_MS", "dial_timeout"),
    ("POOL_IDLE_TIMEOUT_MS", "idle_timeout"),
    ("POOL_SCALE_COOLDOWN_MS", "cooldown"),
    ("POOL_SHRINK_AFTER_MS", "shrink_after"),
];

fn builder() -> Builder<Sim> {
    AdaptivePool::builder(Sim::default())
}

/// What the builder has to say against its settings.
#[track_caller]
fn complaint(builder: Builder<Sim>) -> String {
    builder.build().expect_err("these settings cannot be").to_string()
}

fn law(change: impl FnOnce(&mut QueueDepth)) -> Builder<Sim> {
    let mut law = QueueDepth::default();
    change(&mut law);
    builder().controller(law)
}

fn paid(change: impl FnOnce(&mut PaidGrowth)) -> Builder<Sim> {
    let mut law = PaidGrowth::default();
    change(&mut law);
    builder().controller(law)
}

#[tokio::test(start_paused = true)]
async fn the_defaults_are_those_of_the_documentation() {
    let pool = builder().build().unwrap();
    pool.ready().await.unwrap();
    let seen = pool.snapshot();
    assert_eq!((&*seen.name, seen.min_size, seen.max_size, seen.size), ("default", 10, 50, 10));
    assert_eq!(pool.gate().acquire_timeout(), Duration::from_secs(2));
    let law = QueueDepth::default();
    assert_eq!((law.grow_factor, law.cooldown), (1.5, Duration::from_millis(100)));
}

#[tokio::test(start_paused = true)]
async fn every_bad_setting_is_named_with_its_value_and_what_would_be_right() {
    let table = [
        (builder().min_size(0), "min_size (0) must be at least 1 connection"),
        (builder().min_size(10).max_size(5), "max_size (5) is below min_size (10)"),
        (builder().max_size(0), "max_size (0) is below min_size (10)"),
        (builder().min_limit(0), "min_limit (0) must be at least 1 connection in use"),
        (builder().min_limit(51), "min_limit (51) is over max_size (50)"),
        (builder().min_limit(20).base_limit(15), "min_limit (20) is over base_limit (15)"),
        (builder().base_limit(0), "base_limit (0) must be at least 1 connection in use"),
        (builder().base_limit(51), "base_limit (51) is over max_size (50)"),
        (builder().soft_cap(300), "soft_cap (300) is over hard_cap (200)"),
        (builder().hard_cap(0), "hard_cap (0) must be at least 1 waiter"),
        (builder().acquire_timeout(Duration::ZERO), "acquire_timeout (0 s) must be longer than zero"),
        (builder().max_retry_after(Duration::ZERO), "max_retry_after (0 s) must be longer than zero"),
        (builder().dial_timeout(Duration::ZERO), "dial_timeout (0 s) must be longer than zero"),
        (builder().idle_timeout(Duration::ZERO), "idle_timeout (0 s) must be longer than zero"),
        (builder().max_dialing(0), "max_dialing (0) must be at least 1 dial at once"),
        (builder().name(""), r#"name ("") must not be empty: it names the pool in telemetry"#),
        (builder().share(0.0), "share (0) must be over 0 and at most 1: 0.25 for one instance of four"),
        (
            builder().share(f64::NAN),
            "share (NaN) must be over 0 and at most 1: 0.25 for one instance of four",
        ),
        (paid(|law| law.pays = 1.0), "pays (1) must be at least 0 and under 1, such as 0.1"),
        (paid(|law| law.pays = f64::NAN), "pays (NaN) must be at least 0 and under 1, such as 0.1"),
        (paid(|law| law.threshold = 0), "threshold (0) must be at least 1 waiter"),
        (paid(|law| law.shrink_after = Duration::ZERO), "shrink_after (0 s) must be longer than zero"),
        (law(|law| law.grow_factor = 1.0), "grow_factor (1) must be over 1, such as 1.5"),
        (law(|law| law.grow_factor = 0.5), "grow_factor (0.5) must be over 1, such as 1.5"),
        (law(|law| law.grow_factor = f64::NAN), "grow_factor (NaN) must be over 1, such as 1.5"),
        (law(|law| law.grow_factor = f64::INFINITY), "grow_factor (inf) must be over 1, such as 1.5"),
        (law(|law| law.threshold = 0), "threshold (0) must be at least 1 waiter"),
        (law(|law| law.cooldown = Duration::ZERO), "cooldown (0 s) must be longer than zero"),
        (law(|law| law.shrink_after = Duration::ZERO), "shrink_after (0 s) must be longer than zero"),
    ];
    for (builder, expected) in table {
        assert_eq!(complaint(builder), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn all_problems_are_told_at_once() {
    let law = QueueDepth { threshold: 0, grow_factor: 1.0, ..QueueDepth::default() };
    let bad = builder().min_size(10).max_size(5).soft_cap(9).hard_cap(3).acquire_timeout(Duration::ZERO);
    let error = bad.controller(law).build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "max_size (5) is below min_size (10); \
         soft_cap (9) is over hard_cap (3); \
         acquire_timeout (0 s) must be longer than zero; \
         threshold (0) must be at least 1 waiter; \
         grow_factor (1) must be over 1, such as 1.5"
    );
    let settings: Vec<_> = error.problems().iter().map(Problem::setting).collect();
    assert_eq!(settings, ["max_size", "soft_cap", "acquire_timeout", "threshold", "grow_factor"]);
}

#[tokio::test(start_paused = true)]
async fn a_limiter_is_checked_as_a_pool_is() {
    let error = Limiter::builder().min_size(0).soft_cap(2).hard_cap(1).build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "min_size (0) must be at least 1 connection; soft_cap (2) is over hard_cap (1)"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_backend_has_against_its_own_settings_is_told_with_the_rest() {
    struct Choosy;

    impl Backend for Choosy {
        type Connection = Place;
        type Error = ConfigError;

        async fn dial(&self, place: Place) -> Result<Place, ConfigError> {
            Ok(place)
        }

        fn state(&self, _: &Place) -> ConnectionState {
            ConnectionState::Ready
        }

        fn validate(&self) -> Result<(), ConfigError> {
            Err(ConfigError::new("flavour", "plain", "must be salted"))
        }
    }

    let error = AdaptivePool::builder(Choosy).min_size(0).build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "flavour (plain) must be salted; min_size (0) must be at least 1 connection"
    );
}

#[cfg(feature = "postgres")]
#[tokio::test(start_paused = true)]
async fn what_postgres_cannot_do_is_told_with_the_rest() {
    use tower_adaptive_pool::Postgres;
    let said = |url: &str| {
        let backend = Postgres::new(url.parse().unwrap(), tokio_postgres::NoTls);
        let builder = AdaptivePool::builder(backend.query_timeout(Duration::ZERO)).max_size(0);
        builder.build().unwrap_err().to_string()
    };
    let always = "query_timeout (0 s) must be longer than zero; max_size (0) is below min_size (10)";
    assert_eq!(
        said("user=app"),
        format!("host (none) must be set: one host name, address or socket directory; {always}")
    );
    assert_eq!(
        said("host=a,b,c target_session_attrs=read-write load_balance_hosts=random"),
        format!(
            "host (3 hosts) must be one: several hosts are not supported yet; \
             target_session_attrs (ReadWrite) must be any: others are not supported yet; \
             load_balance_hosts (random) must be disable: there is one host; {always}"
        )
    );
}

#[test]
fn a_runtime_without_timers_is_told_at_build() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(async { Limiter::builder().build().map(drop) }).unwrap_err();
    let expected =
        "Tokio timers (none) must be there: enable_time() or enable_all() at the runtime's builder";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn build_outside_a_runtime_is_a_config_error() {
    let expected = "Tokio runtime (none) must be there: \
                    call build() inside one, such as under #[tokio::main]";
    assert_eq!(complaint(builder()), expected);
    assert_eq!(Limiter::builder().build().unwrap_err().to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_max_size_or_hard_cap_without_bound_is_no_panic() {
    let limiter = Limiter::builder().min_size(1).max_size(usize::MAX).hard_cap(usize::MAX).build().unwrap();
    let held = limiter.acquire().await.unwrap();
    let mut line = line_up(&limiter, 1);
    drop(held);
    assert!(line.remove(0).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_acquire_time_out_without_bound_is_no_panic() {
    let limiter = Limiter::builder().min_size(1).acquire_timeout(Duration::MAX).build().unwrap();
    let held = limiter.acquire().await.unwrap();
    let mut line = line_up(&limiter, 1);
    drop(held);
    assert!(line.remove(0).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn dial_and_idle_time_outs_without_bound_are_no_panic() {
    let pool = builder().dial_timeout(Duration::MAX).idle_timeout(Duration::MAX).build().unwrap();
    pool.ready().await.unwrap();
    drop(pool.acquire().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_a_deadline_is_no_panic() {
    let pool = builder().build().unwrap();
    pool.ready().await.unwrap();
    pool.drain(Duration::MAX).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn set_size_refuses_bad_values_and_changes_nothing() {
    let pool = builder().min_size(2).max_size(4).build().unwrap();
    pool.ready().await.unwrap();
    let before = pool.snapshot();
    for (min_size, max_size, expected) in [
        (0, 5, "min_size (0) must be at least 1 connection"),
        (6, 5, "max_size (5) is below min_size (6)"),
        (0, 0, "min_size (0) must be at least 1 connection"),
        (3, 0, "max_size (0) is below min_size (3)"),
    ] {
        let error = pool.gate().set_size(min_size, max_size).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(pool.snapshot(), before, "nothing has changed");
    }
    pool.gate().set_size(3, 5).unwrap();
    pool.ready().await.unwrap();
    let seen = pool.snapshot();
    assert_eq!((seen.min_size, seen.max_size, seen.limit, seen.idle), (3, 5, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn set_limits_refuses_bad_values_and_changes_nothing() {
    let pool = builder().min_size(2).max_size(4).build().unwrap();
    pool.ready().await.unwrap();
    let before = pool.snapshot();
    for (min_limit, base_limit, expected) in [
        (0, 2, "min_limit (0) must be at least 1 connection in use"),
        (3, 2, "min_limit (3) is over base_limit (2)"),
        (5, 5, "min_limit (5) is over max_size (4)"),
        (1, 5, "base_limit (5) is over max_size (4)"),
        (0, 0, "min_limit (0) must be at least 1 connection in use"),
    ] {
        let error = pool.gate().set_limits(min_limit, base_limit).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(pool.snapshot(), before, "nothing has changed");
    }
    pool.gate().set_limits(3, 4).unwrap();
    let seen = pool.snapshot();
    assert_eq!((seen.min_limit, seen.base_limit, seen.limit), (3, 4, 4));
    pool.gate().set_size(1, 2).unwrap();
    let seen = pool.snapshot();
    assert_eq!((seen.min_limit, seen.base_limit, seen.limit, seen.max_size), (2, 2, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn base_limit_is_min_size_but_at_most_ten_and_never_below_min_limit() {
    for (min_size, min_limit, expected) in [(3, 1, 3), (10, 1, 10), (30, 1, 10), (30, 20, 20), (1, 7, 7)] {
        let builder = builder().min_size(min_size).max_size(50).min_limit(min_limit);
        let seen = builder.build().unwrap().snapshot();
        assert_eq!((seen.base_limit, seen.limit), (expected, expected), "{min_size} open, {min_limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn set_share_refuses_bad_values_and_changes_nothing() {
    let pool = builder().share(0.5).build().unwrap();
    for (share, expected) in [(0.0, "share (0)"), (-1.0, "share (-1)"), (1.5, "share (1.5)")] {
        let error = pool.gate().set_share(share).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!((pool.gate().share() - 0.5).abs() < f64::EPSILON);
    }
    pool.gate().set_share(0.125).unwrap();
    assert!((pool.gate().share() - 0.125).abs() < f64::EPSILON);
}

/// A setting of `QueueDepth` in the environment says that `QueueDepth` is meant; which law decides is seen in why.
#[tokio::test(start_paused = true)]
async fn child_of_the_test_of_the_law() {
    if env::var_os(IS_CHILD).is_none() {
        return;
    }
    let limiter = Limiter::builder().min_size(1).max_size(50).from_env().build().unwrap();
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 20);
    let mut watch = limiter.gate().watch();
    let why = || limiter.gate().snapshot().last_decision.reason.code();
    while ["started", "cooldown"].contains(&why()) {
        assert!(watch.changed().await);
    }
    println!("{SAID}{}", why());
}

#[test]
fn a_setting_of_queue_depth_in_the_environment_selects_that_law() {
    let said = |variables: &[(&'static str, &'static str)]| {
        said_by("child_of_the_test_of_the_law", variables.iter().copied())
    };
    assert_eq!(said(&[]), "follow_demand");
    assert_eq!(said(&[("POOL_SHRINK_AFTER_MS", "700")]), "follow_demand", "a setting of either");
    for variable in
        [("POOL_SCALE_MULTIPLIER", "2"), ("POOL_SCALE_THRESHOLD", "3"), ("POOL_SCALE_COOLDOWN_MS", "50")]
    {
        assert_eq!(said(&[variable]), "queue_over_threshold", "{variable:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn set_caps_refuses_bad_values_and_changes_nothing() {
    let limiter = one_permit(1, 2);
    let gate = limiter.gate().clone();
    for (soft_cap, hard_cap, expected) in [
        (0, 0, "hard_cap (0) must be at least 1 waiter"),
        (6, 5, "soft_cap (6) is over hard_cap (5)"),
        (1, 0, "hard_cap (0) must be at least 1 waiter; soft_cap (1) is over hard_cap (0)"),
    ] {
        assert_eq!(gate.set_caps(soft_cap, hard_cap).unwrap_err().to_string(), expected);
    }
    let refused = || (0..100).filter(|_| matches!(gate.admit(), Verdict::Shed(_))).count();
    let _held = limiter.try_acquire().unwrap();
    let mut line = line_up(&limiter, 1);
    assert_eq!(refused(), 0, "the old soft cap holds");
    line.extend(line_up(&limiter, 1));
    let full = limiter.acquire().await;
    assert!(matches!(full, Err(AcquireError::Shed(shed)) if shed.queue_depth == 2), "the old hard cap holds");

    // Good ones count at once, and nobody who waits is sent away.
    gate.set_caps(0, 3).unwrap();
    assert!((1..100).contains(&refused()), "a ramp from 0 to 3, at 2");
    gate.set_caps(2, 3).unwrap();
    assert_eq!(refused(), 0);
    line.extend(line_up(&limiter, 1));
    assert!(matches!(limiter.acquire().await, Err(AcquireError::Shed(_))));
    gate.set_caps(0, 1).unwrap();
    let seen = gate.snapshot();
    assert_eq!(seen.queue_depth, 3);
    assert_ledgers_add_up(&seen);
}

/// Set for the children: without it they have nothing to say.
const IS_CHILD: &str = "CONFIG_TEST_IS_CHILD";

/// What `build()` says after `from_env()`.
fn said_in_environment<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    said_by("child_of_the_tests_of_from_env", variables)
}

/// What this child says in a process that has this environment and no other.
fn said_by<'a>(child: &str, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", child, "--nocapture"])
        .env_clear()
        .env(IS_CHILD, "yes")
        .envs(variables)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let output = String::from_utf8(child.stdout).unwrap();
    assert!(child.status.success(), "{output}");
    let said = output.lines().find_map(|line| Some(line.split_once(SAID)?.1));
    said.unwrap_or_else(|| panic!("the child said nothing: {output}")).to_owned()
}

#[tokio::test(start_paused = true)]
async fn child_of_the_tests_of_from_env() {
    if env::var_os(IS_CHILD).is_none() {
        return;
    }
    // Set in code first: what the environment does not mention stays.
    match builder().name("code").min_size(3).max_size(30).soft_cap(2).from_env().build() {
        Err(error) => println!("{SAID}{error}"),
        Ok(pool) => {
            pool.ready().await.unwrap();
            let seen = pool.snapshot();
            let (name, min_size, max_size) = (&seen.name, seen.min_size, seen.max_size);
            let timeout = pool.gate().acquire_timeout();
            println!("{SAID}name={name} min_size={min_size} max_size={max_size} acquire_timeout={timeout:?}");
        }
    }
}

#[test]
fn what_the_environment_does_not_mention_stays() {
    let said = said_in_environment([]);
    assert_eq!(said, "name=code min_size=3 max_size=30 acquire_timeout=2s");
}

#[test]
fn the_environment_wins_over_what_was_set_before() {
    let said = said_in_environment([
        ("POOL_NAME", "orders"),
        ("POOL_BASE_MAX", "5"),
        ("POOL_HARD_MAX", " 7 "),
        ("POOL_ACQUIRE_TIMEOUT_MS", "1500"),
        ("POOL_SCALE_MULTIPLIER", "2"),
        ("POOL_FAIL_FAST", "true"),
    ]);
    assert_eq!(said, "name=orders min_size=5 max_size=7 acquire_timeout=1.5s");
}

#[test]
fn every_variable_reaches_its_setting() {
    // Each with a value that can be read and cannot be: the complaint names the setting it went to.
    let table = [
        ("POOL_NAME", "", r#"name ("") must not be empty: it names the pool in telemetry"#),
        ("POOL_BASE_MAX", "31", "max_size (30) is below min_size (31)"),
        ("POOL_HARD_MAX", "2", "max_size (2) is below min_size (3)"),
        ("POOL_MIN_LIMIT", "31", "min_limit (31) is over max_size (30)"),
        ("POOL_BASE_LIMIT", "32", "base_limit (32) is over max_size (30)"),
        ("POOL_SOFT_CAP", "201", "soft_cap (201) is over hard_cap (200)"),
        ("POOL_QUEUE_THRESHOLD", "1", "soft_cap (2) is over hard_cap (1)"),
        ("POOL_MAX_DIALING", "0", "max_dialing (0) must be at least 1 dial at once"),
        ("POOL_SCALE_MULTIPLIER", "1.0", "grow_factor (1) must be over 1, such as 1.5"),
        ("POOL_SCALE_THRESHOLD", "0", "threshold (0) must be at least 1 waiter"),
        ("POOL_SHARE", "2", "share (2) must be over 0 and at most 1: 0.25 for one instance of four"),
        ("POOL_DRY_RUN", "perhaps", r#"POOL_DRY_RUN ("perhaps") cannot be read: it must be true or false"#),
    ];
    for (variable, value, expected) in table {
        assert_eq!(said_in_environment([(variable, value)]), expected, "{variable}={value}");
    }
    let all = said_in_environment(IN_MILLISECONDS.map(|(variable, _)| (variable, "0")));
    let expected = IN_MILLISECONDS.map(|(_, setting)| format!("{setting} (0 s) must be longer than zero"));
    assert_eq!(all, expected.join("; "));
}

#[test]
fn a_value_that_cannot_be_read_is_told_with_its_variable_and_the_others() {
    let connections = "cannot be read: it must be a number of connections";
    for (value, shown) in [("ten", r#""ten""#), ("-5", r#""-5""#), ("", r#""""#), ("1e1", r#""1e1""#)] {
        let said = said_in_environment([("POOL_BASE_MAX", value)]);
        assert_eq!(said, format!("POOL_BASE_MAX ({shown}) {connections}"));
    }

    let others = [
        ("POOL_BASE_MAX", connections),
        ("POOL_HARD_MAX", connections),
        ("POOL_MIN_LIMIT", connections),
        ("POOL_BASE_LIMIT", connections),
        ("POOL_QUEUE_THRESHOLD", "cannot be read: it must be a number of waiters"),
        ("POOL_SOFT_CAP", "cannot be read: it must be a number of waiters"),
        ("POOL_MAX_DIALING", "cannot be read: it must be a number of dials"),
        ("POOL_FAIL_FAST", "cannot be read: it must be true or false"),
        ("POOL_SCALE_MULTIPLIER", "cannot be read: it must be a number over 1, such as 1.5"),
        ("POOL_SCALE_THRESHOLD", "cannot be read: it must be a number of waiters"),
    ];
    let millis = "cannot be read: it must be a whole number of milliseconds";
    let all: Vec<_> = others.into_iter().chain(IN_MILLISECONDS.map(|(name, _)| (name, millis))).collect();
    let said = said_in_environment(all.iter().map(|(name, _)| (*name, "2s")));
    let mut told: Vec<_> = said.split("; ").collect();
    let mut expected: Vec<_> = all.iter().map(|(name, form)| format!(r#"{name} ("2s") {form}"#)).collect();
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected);
}

#[cfg(feature = "postgres")]
mod database_url {
    use super::said_by;
    use tower_adaptive_pool::{AdaptivePool, Postgres};

    const FORM: &str = "must be set to a URL such as postgres://user:password@host/database";
    const CHILD: &str = "database_url::child";

    #[tokio::test(start_paused = true)]
    async fn child() {
        if std::env::var_os(super::IS_CHILD).is_none() {
            return;
        }
        match AdaptivePool::builder(Postgres::from_env(tokio_postgres::NoTls)).from_env().build() {
            Err(error) => println!("{}{error}", super::SAID),
            Ok(pool) => println!("{}max_size={}", super::SAID, pool.snapshot().max_size),
        }
    }

    #[test]
    fn it_is_read_from_the_environment() {
        let url = ("DATABASE_URL", "postgres://app:secret@127.0.0.1:1/app");
        assert_eq!(said_by(CHILD, [url, ("POOL_HARD_MAX", "77")]), "max_size=77");
    }

    #[test]
    fn a_missing_or_unreadable_one_is_told_and_its_password_is_not() {
        assert_eq!(said_by(CHILD, []), format!("DATABASE_URL (not set) {FORM}"));
        let said = said_by(CHILD, [("DATABASE_URL", "postgres://app:secret@127.0.0.1:port/app")]);
        assert!(said.starts_with("DATABASE_URL (") && said.ends_with(FORM), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }

    /// It ends the password early; what comes after is taken for something else, and would be shown as that.
    #[test]
    fn a_password_with_an_at_that_is_not_encoded_is_refused_and_no_part_of_it_shown() {
        for (tail, setting) in [
            ("tail", "host"),
            ("tail:1", ""),
            ("tail/tail", "dbname"),
            ("tail,tail", "host"),
            ("t?tail=tail", ""),
        ] {
            let url = format!("postgres://app:secret@{tail}@127.0.0.1:1/app");
            let said = said_by(CHILD, [("DATABASE_URL", url.as_str())]);
            assert!(!said.contains("tail") && !said.contains("secret"), "{url}: {said}");
            match setting {
                "" => assert!(said.starts_with("DATABASE_URL ("), "{url}: {said}"),
                setting => {
                    let expected = "must have no @; in a URL, the @ of a password is written %40";
                    assert!(
                        said.contains(&format!("{setting} (not shown")) && said.contains(expected),
                        "{url}: {said}"
                    );
                }
            }
            // Nor by whoever reads the URL himself.
            if let Ok(config) = url.parse() {
                let backend = Postgres::new(config, tokio_postgres::NoTls);
                let (shown, builder) = (format!("{backend:?}"), AdaptivePool::builder(backend));
                let shown = format!("{shown} {builder:?}");
                let shown = format!("{shown} {:?}", builder.build().map(|_| ()).unwrap_err());
                assert!(!shown.contains("tail") && !shown.contains("secret"), "{url}: {shown}");
            }
        }
        let url = "postgres://app:secret%40tail%2F@127.0.0.1:1/app?application_name=a@b";
        assert_eq!(said_by(CHILD, [("DATABASE_URL", url), ("POOL_HARD_MAX", "77")]), "max_size=77");
    }

    #[test]
    fn a_bad_query_time_out_is_told() {
        let url = ("DATABASE_URL", "postgres://app:secret@127.0.0.1:1/app");
        let said = said_by(CHILD, [url, ("POOL_QUERY_TIMEOUT_MS", "soon")]);
        let form = "cannot be read: it must be a whole number of milliseconds";
        assert_eq!(said, format!(r#"POOL_QUERY_TIMEOUT_MS ("soon") {form}"#));
        let said = said_by(CHILD, [url, ("POOL_QUERY_TIMEOUT_MS", "0")]);
        assert_eq!(said, "query_timeout (0 s) must be longer than zero");
    }

    #[test]
    fn everything_wrong_in_the_environment_is_told_at_once() {
        let said = said_by(CHILD, [("POOL_QUERY_TIMEOUT_MS", "soon"), ("POOL_BASE_MAX", "none")]);
        for part in ["DATABASE_URL (not set)", "POOL_QUERY_TIMEOUT_MS (\"soon\")", "POOL_BASE_MAX (\"none\")"]
        {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(!said.contains("host (none)"), "not twice: {said}");
    }
}
