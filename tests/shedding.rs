//! Who is refused, who is served first and who is never served too late, on virtual time: classes, deadlines, retries, a
//! stalled backend, bad input.

mod support;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use http::{Extensions, HeaderValue, Request, Response};
use support::{
    eventually,
    line::{Pending, assert_ledgers_add_up, begin, line_up, line_up_as, one_permit},
};
use tokio::time::{Instant, advance, sleep, sleep_until};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_adaptive_pool::{
    AcquireError, AcquireTimeout, AdaptivePoolLayer, Class, Deadline, Limiter, Permit, Shed, ShedReason,
    Terms, Verdict,
};

const DEADLINE: Duration = Duration::from_secs(10);
const CLASSES: [Class; 4] = [Class::Critical, Class::High, Class::Low, Class::Background];

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Numbers that look random and are the same in each run (SplitMix64).
struct Draws(u64);

impl Draws {
    fn below(&mut self, many: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % many
    }
}

/// An acquire that waits on these terms.
#[track_caller]
fn wait(limiter: &Limiter, terms: impl Into<Terms>) -> Pending<Result<Permit, AcquireError>> {
    let (limiter, terms) = (limiter.clone(), terms.into());
    begin(async move { limiter.acquire_with(terms).await })
}

/// Gives one permit a use time of 100 ms, and holds it.
async fn held_after_100_ms(limiter: &Limiter) -> Permit {
    let permit = limiter.acquire().await.unwrap();
    sleep(ms(100)).await;
    drop(permit);
    limiter.try_acquire().unwrap()
}

/// Why a request on these terms is refused now, if it is.
fn verdict(limiter: &Limiter, terms: impl Into<Terms>) -> Option<ShedReason> {
    match limiter.gate().admit_with(terms) {
        Verdict::Admit => None,
        Verdict::Shed(shed) => Some(shed.reason),
    }
}

/// The layer's refusal of a request, if it refuses; the answer must be there at once.
#[track_caller]
fn refusal<S, B>(service: &mut S, request: Request<B>) -> Option<Shed>
where
    S: Service<Request<B>, Response = Response<()>, Error = Infallible>,
{
    let answer = service.call(request).now_or_never().expect("an answer at once");
    let Ok(response) = answer;
    response.extensions().get().copied()
}

/// A service that serves at once.
fn serving<B>() -> impl Service<Request<B>, Response = Response<()>, Error = Infallible> {
    service_fn(|_: Request<B>| std::future::ready(Ok(Response::new(()))))
}

/// What an acquire in vain tells.
#[track_caller]
fn timed_out(outcome: Result<Permit, AcquireError>) -> AcquireTimeout {
    match outcome {
        Err(AcquireError::Timeout(timeout)) => *timeout,
        other => panic!("not a time-out: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn higher_classes_are_served_first_and_each_class_in_the_order_of_its_arrival() {
    const WAITERS: usize = 60;
    let limiter = one_permit(WAITERS, WAITERS);
    let held = limiter.try_acquire().unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let (mut draws, mut arrived) = (Draws(7), Vec::new());
    for number in 0..WAITERS {
        let class = [Class::Exempt, Class::Critical, Class::High, Class::Low, Class::Background]
            [draws.below(5) as usize];
        arrived.push((class, number));
        let (limiter, served) = (limiter.clone(), served.clone());
        tokio::spawn(async move {
            // Both ways to say it.
            let permit = if number.is_multiple_of(2) {
                limiter.acquire_with(class).await.unwrap()
            } else {
                let mut extensions = Extensions::new();
                extensions.insert(class);
                limiter.acquire_for(&extensions).await.unwrap()
            };
            served.lock().unwrap().push((class, number));
            drop(permit);
        });
    }
    eventually(DEADLINE, async || limiter.gate().snapshot().queue_depth == WAITERS).await;
    drop(held);
    eventually(DEADLINE, async || served.lock().unwrap().len() == WAITERS).await;

    // The exempt wait in line with the critical ones.
    arrived.sort_by_key(|(class, _)| (*class).max(Class::Critical));
    assert_eq!(*served.lock().unwrap(), arrived);
    assert_ledgers_add_up(&limiter.gate().snapshot());
}

#[tokio::test(start_paused = true)]
async fn between_the_caps_the_lower_classes_are_refused_first() {
    const ARRIVALS: u64 = 20_000;
    // A quarter of the arrivals is of each class: what the ramp asks for is taken from the lowest up.
    for (depth, refused) in [
        (12, [0.0, 0.0, 0.0, 0.8]),
        (14, [0.0, 0.0, 0.6, 1.0]),
        (16, [0.0, 0.4, 1.0, 1.0]),
        (18, [0.2, 1.0, 1.0, 1.0]),
    ] {
        let limiter = one_permit(10, 20);
        let _held = limiter.try_acquire().unwrap();
        let _line = line_up_as(&limiter, Class::Critical, depth);
        let layer = AdaptivePoolLayer::new(limiter.clone());
        let mut service = layer.with_classifier(|request: &Request<Class>| *request.body()).layer(serving());

        let (mut draws, mut arrivals, mut sheds) = (Draws(11), [0u32; 4], [0u32; 4]);
        for arrival in 0..ARRIVALS {
            let class = draws.below(4) as usize;
            let shed = refusal(&mut service, Request::new(CLASSES[class]));
            if let Some(shed) = shed {
                assert_eq!((shed.reason, shed.class), (ShedReason::SoftCap, CLASSES[class]));
            }
            // The first few thousand are how the gate learns who comes.
            if arrival > ARRIVALS / 10 {
                arrivals[class] += 1;
                sheds[class] += u32::from(shed.is_some());
            }
        }
        for class in 0..4 {
            let part = f64::from(sheds[class]) / f64::from(arrivals[class]);
            let (name, expected) = (CLASSES[class], refused[class]);
            assert!((part - expected).abs() < 0.05, "{depth} waiting: of {name} {part}, not {expected}");
        }
        let (all, total) = (sheds.iter().sum::<u32>(), arrivals.iter().sum::<u32>());
        let (part, ramp) = (f64::from(all) / f64::from(total), (depth - 10) as f64 / 10.0);
        assert!((part - ramp).abs() < 0.02, "{depth} waiting: {part} of all, the ramp says {ramp}");
    }
}

#[tokio::test(start_paused = true)]
async fn exempt_requests_pass_at_the_hard_cap_and_during_a_drain_but_their_acquires_do_not() {
    let limiter = one_permit(2, 2);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let mut service = layer.with_classifier(|request: &Request<Class>| *request.body()).layer(serving());
    let held = limiter.try_acquire().unwrap();
    let line = line_up_as(&limiter, Class::Exempt, 2);

    for class in CLASSES {
        let shed = refusal(&mut service, Request::new(class)).expect("refused at the hard cap");
        assert_eq!((shed.reason, shed.class), (ShedReason::HardCap, class));
    }
    assert_eq!(refusal(&mut service, Request::new(Class::Exempt)), None);
    match limiter.acquire_with(Class::Exempt).await {
        Err(AcquireError::Shed(shed)) => {
            assert_eq!((shed.reason, shed.queue_depth, shed.class), (ShedReason::HardCap, 2, Class::Exempt));
        }
        other => panic!("hard_cap holds for everybody: {other:?}"),
    }

    drop(line);
    let draining = begin({
        let limiter = limiter.clone();
        async move { limiter.drain(DEADLINE).await }
    });
    for class in CLASSES {
        let shed = refusal(&mut service, Request::new(class)).expect("refused during a drain");
        assert_eq!(shed.reason, ShedReason::Draining);
    }
    assert_eq!(refusal(&mut service, Request::new(Class::Exempt)), None);
    assert!(matches!(limiter.acquire_with(Class::Exempt).await, Err(AcquireError::Closed)));
    drop(held);
    draining.await.unwrap();
    assert_eq!(refusal(&mut service, Request::new(Class::Exempt)), None, "health is asked after the end too");

    let seen = limiter.gate().snapshot();
    assert_eq!((seen.admissions.admitted, seen.admissions.shed), (3, 8));
    assert_ledgers_add_up(&seen);
}

#[tokio::test(start_paused = true)]
async fn a_requests_deadline_bounds_its_acquire_and_acquire_timeout_holds_as_well() {
    let limiter = Limiter::builder().fixed_size(1).acquire_timeout(ms(2_000)).seed(7).build().unwrap();
    let _held = limiter.try_acquire().unwrap();
    // 7 ms is nearer than the driver looks.
    for (budget, waited, by_request) in
        [(7, 7, true), (300, 300, true), (1_999, 1_999, true), (2_000, 2_000, false), (9_000, 2_000, false)]
    {
        let mut extensions = Extensions::new();
        extensions.insert(Deadline::within(ms(budget)));
        let asked = Instant::now();
        let told = timed_out(limiter.acquire_for(&extensions).await);
        assert_eq!((told.waited, told.by_request), (ms(waited), by_request), "a budget of {budget} ms");
        assert_eq!(asked.elapsed(), ms(waited));
        let limit = if by_request { "the request's deadline" } else { "acquire_timeout" };
        assert!(told.to_string().contains(limit), "{told}");
    }
    assert_ledgers_add_up(&limiter.gate().snapshot());
}

#[tokio::test(start_paused = true)]
async fn an_acquire_whose_deadline_has_passed_gets_nothing_though_a_permit_is_free() {
    let limiter = one_permit(2, 2);
    let passed = Deadline::within(ms(5));
    sleep(ms(6)).await;
    let told = timed_out(limiter.acquire_with(passed).await);
    assert_eq!((told.waited, told.by_request), (Duration::ZERO, true));
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.idle, seen.acquires.timed_out, seen.acquires.granted), (1, 1, 0));
    assert_ledgers_add_up(&seen);
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_for_too_long_is_refused_on_arrival_and_who_comes_too_late_as_expired() {
    let limiter = one_permit(500, 1_000);
    let held = held_after_100_ms(&limiter).await;
    let line = line_up(&limiter, 5);
    let within = |budget| Terms::from(Deadline::within(ms(budget)));

    // The sixth waits 600 ms, and 100 ms are for its use: 0.8 of what is left of 800 ms is too little.
    for _ in 0..1_000 {
        assert_eq!(verdict(&limiter, within(800)), Some(ShedReason::EstimatedWait));
    }
    let longer: Vec<_> = (0..1_000).map(|_| verdict(&limiter, within(900))).collect();
    assert!(longer.contains(&None), "some have time enough");
    assert!(!longer.contains(&Some(ShedReason::EstimatedWait)));
    assert_eq!(verdict(&limiter, Class::High), None, "acquire_timeout is longer still");
    // Nobody is ahead of the critical one.
    assert_eq!(verdict(&limiter, Terms { class: Class::Critical, ..within(300) }), None);

    drop((line, held));
    assert_eq!(verdict(&limiter, within(0)), Some(ShedReason::Expired), "though a permit is free");
    assert_eq!(verdict(&limiter, within(1)), None, "a free permit costs no wait");
}

#[tokio::test(start_paused = true)]
async fn in_a_stall_only_the_counts_bind_so_that_somebody_is_there_when_it_is_over() {
    let limiter = one_permit(500, 1_000);
    let _held = held_after_100_ms(&limiter).await;
    let _line = line_up(&limiter, 5);
    let refused = || verdict(&limiter, Deadline::within(ms(300)));
    assert_eq!(refused(), Some(ShedReason::EstimatedWait), "as long as a use takes 100 ms");
    sleep(ms(1_100)).await;
    assert_eq!(limiter.gate().snapshot().queue_depth, 5);
    assert_eq!(refused(), None, "nobody knows how long one takes now");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_refused_while_a_permit_is_idle_or_fewer_wait_than_there_are_permits() {
    let limiter = Limiter::builder().fixed_size(4).soft_cap(0).hard_cap(9).seed(7).build().unwrap();
    let mut held = vec![held_after_100_ms(&limiter).await];
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let mut service = layer
        .with_classifier(|request: &Request<Class>| *request.body())
        .with_deadline_header("x-timeout-ms")
        .unwrap()
        .with_retry_header("x-retry")
        .unwrap()
        .layer(serving());
    // Of each class, with a time that is too short for the use itself, and far more retries than there may be.
    let mut refused = || {
        let requests = CLASSES.into_iter().cycle().take(400).map(|class| {
            let request = Request::builder().header("x-timeout-ms", "1").header("x-retry", "1");
            request.body(class).unwrap()
        });
        let sheds = requests.filter_map(|request| refusal(&mut service, request));
        sheds.map(|shed| shed.reason).collect::<Vec<_>>()
    };

    let nobody = Vec::new();
    for _ in 1..4 {
        assert_eq!(refused(), nobody, "{} are held", held.len());
        held.push(limiter.try_acquire().unwrap());
    }
    let mut line = Vec::new();
    for _ in 0..4 {
        assert_eq!(refused(), nobody, "{} wait", line.len());
        line.extend(line_up(&limiter, 1));
    }
    assert_eq!(refused().len(), 400, "now as many wait as there are permits");
}

#[tokio::test(start_paused = true)]
async fn what_higher_classes_took_before_a_rest_is_not_held_against_the_lower() {
    let limiter = Limiter::builder().fixed_size(10).seed(5).build().unwrap();
    let ask = |class: Class| {
        let (limiter, refused) = (limiter.clone(), verdict(&limiter, class));
        if refused.is_none() {
            tokio::spawn(async move {
                let _permit = limiter.acquire_with(class).await.unwrap();
                sleep(ms(10)).await;
            });
        }
        refused
    };
    for rest in [60_000, 40] {
        // As many as ten permits of 10 ms can serve.
        for _ in 0..4_000 {
            let _ = ask(Class::High);
            sleep(ms(1)).await;
        }
        eventually(DEADLINE, async || limiter.gate().snapshot().in_use == 0).await;
        sleep(ms(rest)).await;
        for number in 0..40 {
            assert_eq!(ask(Class::Low), None, "the {number}th after a rest of {rest} ms");
            tokio::task::yield_now().await;
        }
        eventually(DEADLINE, async || limiter.gate().snapshot().in_use == 0).await;
    }
    assert_ledgers_add_up(&limiter.gate().snapshot());
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_given_back_at_once_does_not_hide_how_long_others_are_held() {
    let limiter = one_permit(500, 1_000);
    drop(limiter.try_acquire().unwrap());
    let held = limiter.try_acquire().unwrap();
    let mut line = line_up(&limiter, 2);
    sleep(ms(100)).await;
    drop(held);
    let next = line.remove(0).await.unwrap();
    sleep(ms(100)).await;
    drop(next);
    assert_eq!(limiter.gate().snapshot().use_time, Some(ms(100)));
    let _last = line.remove(0).await.unwrap();
    let _line = line_up(&limiter, 5);
    assert_eq!(verdict(&limiter, Deadline::within(ms(300))), Some(ShedReason::EstimatedWait));
}

/// When requests came in one run, and when one was served in time.
#[derive(Default)]
struct Run {
    came: Vec<Instant>,
    served: Vec<Instant>,
}

impl Run {
    /// So many were served of so many that came.
    fn goodput(&self, from: Instant, to: Instant) -> (usize, usize) {
        let within = |times: &[Instant]| times.iter().filter(|at| (from..to).contains(at)).count();
        (within(&self.served), within(&self.came))
    }
}

/// Four permits of 10 ms each; from 2 s to 7 s whoever holds one is held up.
struct Stall {
    limiter: Limiter,
    began: Instant,
    stalls: Instant,
    well: Instant,
}

impl Stall {
    /// Time enough for the answer; those who waited for longer have left.
    const BUDGET: Duration = Duration::from_millis(250);

    fn new(seed: u64) -> Self {
        let builder = Limiter::builder().fixed_size(4).soft_cap(100).hard_cap(200).seed(seed);
        let limiter = builder.acquire_timeout(Self::BUDGET).build().unwrap();
        let began = Instant::now();
        Self { limiter, began, stalls: began + ms(2_000), well: began + ms(7_000) }
    }

    async fn use_permit(
        limiter: Limiter,
        stalls: Instant,
        well: Instant,
    ) -> Result<Response<bool>, Infallible> {
        let permit = limiter.acquire().await;
        if permit.is_ok() {
            sleep(ms(10)).await;
            if (stalls..well).contains(&Instant::now()) {
                sleep_until(well).await;
            }
        }
        Ok(Response::new(permit.is_ok()))
    }

    /// Runs for 12 s. Each request is tried again so many times, by every other client when `Retry-After` says, by the
    /// rest after 50 ms.
    async fn run(&self, seed: u64, mean_gap: Duration, retries: usize) -> Arc<Mutex<Run>> {
        let (limiter, stalls, well) = (self.limiter.clone(), self.stalls, self.well);
        let service = AdaptivePoolLayer::new(limiter.clone())
            .layer(service_fn(move |_: Request<()>| Self::use_permit(limiter.clone(), stalls, well)));
        let run = Arc::<Mutex<Run>>::default();
        let (mut draws, mut next, mut honours) = (Draws(seed), self.began, false);
        while next < self.began + ms(12_000) {
            sleep_until(next).await;
            honours = !honours;
            let (service, run) = (service.clone(), run.clone());
            run.lock().unwrap().came.push(next);
            tokio::spawn(async move {
                for _ in 0..=retries {
                    let asked = Instant::now();
                    let response = service.clone().oneshot(Request::new(())).await.unwrap();
                    if *response.body() {
                        if asked.elapsed() <= Self::BUDGET + ms(10) {
                            run.lock().unwrap().served.push(Instant::now());
                        }
                        break;
                    }
                    let told = response.extensions().get::<Shed>().map(|shed| shed.retry_after);
                    sleep(told.filter(|_| honours).unwrap_or(ms(50))).await;
                }
            });
            next += Duration::from_micros(draws.below(2 * mean_gap.as_micros() as u64));
        }
        eventually(ms(130_000), async || self.limiter.gate().snapshot().in_use == 0).await;
        assert_ledgers_add_up(&self.limiter.gate().snapshot());
        run
    }
}

#[tokio::test(start_paused = true)]
async fn never_latched_shut_after_a_stall() {
    // At 75 % of what can be served. For 0.3 s it may go by the holds of the stall, if one of them was measured.
    for seed in 1..=3 {
        let stall = Stall::new(seed);
        let run = stall.run(seed, Duration::from_micros(3_333), 0).await;
        let run = run.lock().unwrap();
        let (served, came) = run.goodput(stall.began, stall.stalls);
        assert!(served * 100 >= came * 98, "seed {seed}: {served} of {came} before the stall");
        let (served, came) = run.goodput(stall.stalls + ms(100), stall.well);
        assert!(served == 0 && came > 1_000, "seed {seed}: {served} of {came} in the stall");
        for second in 1..4 {
            let from = stall.well + ms(1_000 * second - 700);
            let (served, came) = run.goodput(from, from + ms(1_000));
            assert!(served * 100 >= came * 98, "seed {seed}: {served} of {came} in second {second} after it");
        }
    }
}

/// What a count cap alone does not survive: clients that come back three times, half of them deaf to `Retry-After`.
#[tokio::test(start_paused = true)]
async fn a_retry_storm_after_a_stall_costs_no_goodput() {
    // At 86 % of what can be served.
    for seed in 1..=3 {
        let stall = Stall::new(seed);
        let run = stall.run(seed, Duration::from_micros(2_907), 3).await;
        let run = run.lock().unwrap();
        for second in 0..4 {
            let from = stall.well + ms(1_000 * second);
            let (served, came) = run.goodput(from, from + ms(1_000));
            assert!(served * 100 >= came * 95, "seed {seed}: {served} of {came} in second {second} after it");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_waiter_is_never_granted_though_nobody_had_time_to_tell_it() {
    let limiter = one_permit(10, 10);
    let held = limiter.try_acquire().unwrap();
    let mut late = wait(&limiter, Terms { class: Class::Critical, deadline: Some(Deadline::within(ms(50))) });
    let mut in_time = wait(&limiter, Class::Background);

    // The clock moves and nothing else has run since.
    assert!(advance(ms(60)).now_or_never().is_none());
    assert_eq!(limiter.gate().snapshot().queue_depth, 2);
    drop(held);
    assert_eq!(limiter.gate().snapshot().queue_depth, 0);
    let permit = in_time.as_mut().now_or_never().expect("the first who is still in time").unwrap();
    assert!(timed_out(late.as_mut().now_or_never().expect("it is told")).by_request);
    drop(permit);
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.acquires.granted, seen.acquires.timed_out, seen.idle), (2, 1, 1));
    assert_ledgers_add_up(&seen);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_granted_a_permit_is_granted_it_in_time() {
    const WAITERS: u64 = 2_000;
    const LONGEST_USE: Duration = Duration::from_millis(5);
    let limiter = Limiter::builder().fixed_size(2).soft_cap(WAITERS as usize);
    let limiter = limiter.hard_cap(WAITERS as usize).seed(7).build().unwrap();
    let (mut draws, mut acquires) = (Draws(3), Vec::new());
    for number in 0..WAITERS {
        let (budget, use_time) = (ms(1 + draws.below(200)), LONGEST_USE.min(ms(draws.below(6))));
        let class = CLASSES[draws.below(4) as usize];
        let limiter = limiter.clone();
        acquires.push(tokio::spawn(async move {
            let (asked, deadline) = (Instant::now(), Some(Deadline::within(budget)));
            let outcome = limiter.acquire_with(Terms { class, deadline }).await;
            let waited = asked.elapsed();
            if outcome.is_ok() {
                assert!(waited < budget, "{number} was granted after {waited:?} of {budget:?}");
            } else {
                // As long before the deadline as a use takes it is too late, and no use takes longer; but half of the time is
                // waited in any case.
                let earliest = budget.saturating_sub(LONGEST_USE).max(budget / 2);
                assert!(waited >= earliest, "{number} was sent away after {waited:?} of {budget:?}");
            }
            if outcome.is_ok() {
                sleep(use_time).await;
            }
            outcome.is_ok()
        }));
        sleep(ms(draws.below(2))).await;
    }
    let mut served = 0;
    for acquire in acquires {
        served += u64::from(acquire.await.unwrap());
    }
    assert!(served > WAITERS / 4 && served < WAITERS * 3 / 4, "both ends are to be seen: {served}");
    let seen = limiter.gate().snapshot();
    assert_eq!((seen.acquires.granted, seen.acquires.timed_out), (served, WAITERS - served));
    assert_ledgers_add_up(&seen);
}

/// Answers with the terms it was called on.
async fn tell<B>(request: Request<B>) -> Result<Response<Terms>, Infallible> {
    Ok(Response::new(Terms::of(request.extensions())))
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_one_class_lower() {
    let limiter = one_permit(9, 9);
    let layer = AdaptivePoolLayer::new(limiter.clone()).with_retry_header("X-Retry").unwrap();
    let layer = layer.with_classifier(|request: &Request<Class>| *request.body());
    let mut service = layer.layer(service_fn(tell));
    for (class, lower) in [
        (Class::Exempt, Class::Exempt),
        (Class::Critical, Class::High),
        (Class::High, Class::Low),
        (Class::Low, Class::Background),
        (Class::Background, Class::Background),
    ] {
        for (value, expected) in [("0", class), ("1", lower), ("2", lower), ("yes", lower), ("", lower)] {
            let request = Request::builder().header("x-retry", value).body(class).unwrap();
            let seen = *service.call(request).await.unwrap().body();
            assert_eq!(seen, Terms::from(expected), "{class} with {value:?}");
        }
        assert_eq!(service.call(Request::new(class)).await.unwrap().body().class, class);
    }
}

#[tokio::test(start_paused = true)]
async fn while_nothing_is_free_retries_are_a_tenth_of_the_first_attempts() {
    let limiter = one_permit(50, 100);
    let _held = limiter.try_acquire().unwrap();
    let _line = line_up(&limiter, 1);
    let layer = AdaptivePoolLayer::new(limiter.clone()).with_retry_header("x-retry").unwrap();
    let mut service = layer.layer(serving());
    let retry = || Request::builder().header("x-retry", "1").body(()).unwrap();

    assert_eq!((0..10).find_map(|_| refusal(&mut service, retry())), None, "ten to begin with");
    let shed = refusal(&mut service, retry()).expect("the eleventh");
    assert_eq!((shed.reason, shed.class), (ShedReason::RetryBudget, Class::Low));
    let mut admitted = 0;
    for _ in 0..1_000 {
        assert_eq!(refusal(&mut service, Request::new(())), None, "first attempts pay nothing for it");
        // Three retries of each.
        admitted += (0..3).filter(|_| refusal(&mut service, retry()).is_none()).count();
    }
    assert_eq!(admitted, 100);
}

#[tokio::test(start_paused = true)]
async fn a_classifier_that_panics_makes_no_difference() {
    let limiter = one_permit(9, 9);
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let broken = |_: &Request<()>| -> Class { panic!("the classifier's own fault") };
    let mut service = layer.with_classifier(broken).layer(service_fn(tell));
    for _ in 0..3 {
        assert_eq!(*service.call(Request::new(())).await.unwrap().body(), Terms::default());
    }
    let mut request = Request::new(());
    request.extensions_mut().insert(Class::Critical);
    assert_eq!(service.call(request).await.unwrap().body().class, Class::Critical, "what others have said");
    assert_eq!(limiter.gate().snapshot().admissions.admitted, 4);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_cannot_be_read_leaves_the_default_budget() {
    const BUDGET: Duration = Duration::from_secs(2);
    let limiter = Limiter::builder().fixed_size(1).acquire_timeout(BUDGET).build().unwrap();
    let _held = limiter.try_acquire().unwrap();
    let handler = limiter.clone();
    let layer = AdaptivePoolLayer::new(limiter.clone());
    let layer = layer.with_deadline_header("grpc-timeout").unwrap();
    let service = layer.with_deadline_header("x-timeout-ms").unwrap().layer(service_fn(move |request| {
        let limiter = handler.clone();
        async move {
            let request: Request<()> = request;
            let told = timed_out(limiter.acquire_for(request.extensions()).await);
            Ok::<_, Infallible>(Response::new(Some(told)))
        }
    }));
    let waits = async |name: &str, value: &[u8]| {
        let value = HeaderValue::from_bytes(value).unwrap();
        let request = Request::builder().header(name, value).body(()).unwrap();
        service.clone().oneshot(request).await.unwrap().into_body().expect("it was admitted")
    };
    let absurd: [&[u8]; 9] = [
        b"",
        b"soon",
        b"-1",
        b"1e9",
        b"0x10",
        b"NaN",
        b"\xff\xfe",
        b"18446744073709551615", // read, and longer than any clock counts
        b"99999999999999999999999999999999",
    ];
    for value in absurd {
        let told = waits("x-timeout-ms", value).await;
        assert_eq!((told.waited, told.by_request), (BUDGET, false), "{}", value.escape_ascii());
    }
    for value in ["100000000m", "1", "m", "5x", "1 S", "99999999H"] {
        let told = waits("grpc-timeout", value.as_bytes()).await;
        assert_eq!((told.waited, told.by_request), (BUDGET, false), "{value}");
    }
    let told = waits("grpc-timeout", b"30m").await;
    assert_eq!((told.waited, told.by_request), (ms(30), true), "as one that can be read");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_cannot_be_kept_is_a_refusal_and_no_error() {
    let limiter = one_permit(9, 9);
    let layer = AdaptivePoolLayer::new(limiter.clone()).with_deadline_header("x-timeout-ms").unwrap();
    let mut service = layer.with_deadline_header("grpc-timeout").unwrap().layer(serving());
    let asked = |name, value| Request::builder().header(name, value).body(()).unwrap();
    let shed = refusal(&mut service, asked("grpc-timeout", "0S")).expect("refused");
    assert_eq!(shed.reason, ShedReason::Expired);
    assert_eq!(refusal(&mut service, asked("x-timeout-ms", "0")), None, "which many mean as no limit");
    let passed = Deadline::at(std::time::Instant::now().checked_sub(ms(3_600_000)).unwrap());
    let mut request = Request::new(());
    request.extensions_mut().insert(passed);
    assert_eq!(refusal(&mut service, request).expect("refused").reason, ShedReason::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_header_name_that_is_none_is_a_config_error_that_names_the_setting() {
    let layer = AdaptivePoolLayer::new(one_permit(1, 1));
    for name in ["", " ", "two words", "ümlaut", "a:b", "new\nline"] {
        let deadline = layer.clone().with_deadline_header(name).unwrap_err();
        let retry = layer.clone().with_retry_header(name).unwrap_err();
        for (error, setting) in [(deadline, "deadline_header"), (retry, "retry_header")] {
            let [problem] = error.problems() else { panic!("one problem: {error}") };
            assert_eq!(problem.setting(), setting);
            assert!(
                error.to_string().starts_with(&format!("{setting} ({name:?}) must be the name")),
                "{error}"
            );
        }
    }
}
