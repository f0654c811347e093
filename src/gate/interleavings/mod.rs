//! In which order a few tasks come to the lock must not matter: the real [`Slots`](super::slots::Slots),
//! [`Wait`](super::acquire::Wait) and [`Place`](crate::backend::Place) under shuttle, which decides at each lock who runs
//! next, and finds who waits for ever. A failure prints its schedule; give it to `shuttle::replay` in place of
//! `interleave`'s two calls.

mod pool;

use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};

use super::counts::Bounds;
use super::permits::{Keeps, Leave};
use pool::{Caller, Pool};

const BOUNDS: Bounds = Bounds {
    min_limit: 1,
    base_limit: 1,
    min_size: 1,
    max_size: 2,
    hard_cap: 2,
    check_after: Duration::ZERO,
};

/// Half of the schedules are random; half are PCT's, which finds what needs a few turns in just the wrong places.
fn interleave(test: fn()) {
    shuttle::check_random(test, 1_000);
    shuttle::check_pct(test, 1_000, 3);
}
fn soon() -> Caller {
    let why = if thread_rng().gen_bool(0.5) { Leave::Cancelled } else { Leave::TimedOut };
    Caller::Leaves(thread_rng().gen_range(0..4), why)
}

#[test]
fn a_granted_waiter_cancelled_while_the_limit_falls_and_its_connection_dies_loses_nothing() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 2);
        let [dying, other] = [Caller::Tries; 2].map(|caller| pool.acquire(caller).expect("two are idle"));
        let dies = dying.id;
        let leaving = pool.spawn(|pool| pool.call(soon()));
        let waiting = pool.spawn(|pool| pool.call(Caller::Waits));
        let server = pool.spawn(move |pool| pool.kill(dies));
        pool.give_back(dying);
        pool.set_limit(1);
        pool.give_back(other);
        let counts = pool.look();
        assert!(counts.in_use <= 1, "what came back since is free: {counts:?}");
        leaving.join().unwrap();
        server.join().unwrap();
        assert!(waiting.join().unwrap(), "who stays is served");
        pool.at_rest(2);
    });
}

#[test]
fn who_waits_gets_the_reserve_as_soon_as_the_limit_has_room() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 2);
        pool.set_limit(1);
        let held = pool.acquire(Caller::Tries).expect("one may be used");
        assert_eq!((pool.look().reserve, pool.look().idle), (1, 0));
        let waiting = pool.spawn(|pool| pool.call(Caller::Waits));
        // What makes room: a higher limit, higher bounds, or that the one in use dies.
        match thread_rng().gen_range(0..3) {
            0 => {
                let raises = pool.spawn(|pool| pool.set_limit(2));
                assert!(waiting.join().unwrap(), "the other one is still held");
                raises.join().unwrap();
                pool.give_back(held);
            }
            1 => {
                let bounds = Bounds { min_limit: 2, base_limit: 2, ..BOUNDS };
                let raises =
                    pool.spawn(move |pool| pool.slots.set_bounds(pool.slots.bounds(), bounds, pool.now));
                assert!(waiting.join().unwrap(), "the other one is still held");
                raises.join().unwrap();
                pool.give_back(held);
            }
            _ => {
                held.dead.store(true, Relaxed);
                pool.give_back(held);
                assert!(waiting.join().unwrap());
            }
        }
        pool.at_rest(2);
    });
}

#[test]
fn a_dead_grant_goes_back_to_the_head_of_a_full_queue_and_nobody_is_forgotten() {
    interleave(|| {
        let pool = Pool::new(Bounds { max_size: 1, hard_cap: 1, ..BOUNDS }, 1);
        let held = pool.acquire(Caller::Tries).expect("one is idle");
        let callers = [Caller::Waits, soon(), Caller::LeavesChecking(Leave::Cancelled)];
        let callers = callers.map(|caller| pool.spawn(move |pool| pool.call(caller)));
        held.dead.store(thread_rng().gen_bool(0.5), Relaxed);
        let server = pool.spawn(|pool| [1, 2].map(|id| pool.kill(id)));
        pool.give_back(held);
        for caller in callers {
            caller.join().unwrap();
        }
        server.join().unwrap();
        pool.at_rest(1);
    });
}

#[test]
fn a_drain_serves_who_waits_though_connections_die_and_leaves_nothing_open() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 1);
        let held = pool.acquire(Caller::Tries).expect("one is idle");
        let callers = [Caller::Waits, soon()].map(|caller| pool.spawn(move |pool| pool.call(caller)));
        let server = pool.spawn(|pool| pool.kill(0));
        pool.slots.start_drain();
        let to_serve = pool.look().queue_depth;
        pool.give_back(held);
        let served = callers.map(|caller| caller.join().unwrap());
        server.join().unwrap();
        assert!(to_serve < 2 || served[0], "who waited when the drain began is served");
        pool.at_rest(2);
    });
}

#[test]
fn a_close_answers_everybody_whoever_comes_leaves_or_gives_back_meanwhile() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 2);
        let [dying, kept] = [Caller::Tries; 2].map(|caller| pool.acquire(caller).expect("two are idle"));
        let dies = dying.id;
        let callers = [Caller::Waits, soon()].map(|caller| pool.spawn(move |pool| pool.call(caller)));
        let server = pool.spawn(move |pool| {
            pool.kill(dies);
            pool.set_limit(1);
        });
        pool.give_back(dying);
        pool.slots.close();
        for caller in callers {
            caller.join().unwrap();
        }
        pool.give_back(kept);
        server.join().unwrap();
        pool.at_rest(2);
    });
}

#[test]
fn whoever_comes_wakes_the_driver() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 1);
        let driver = pool.spawn(|pool| block_on(poll_fn(|cx| pool.slots.poll_busy(0, cx.waker()))));
        let caller = [Caller::Waits, Caller::Tries, soon()][thread_rng().gen_range(0..3)];
        pool.call(caller);
        driver.join().unwrap();
        pool.at_rest(2);
    });
}

#[test]
fn whatever_three_tasks_do_nothing_is_lost() {
    interleave(|| {
        let keeps = if thread_rng().gen_bool(0.5) { Keeps::Reserve } else { Keeps::Nothing };
        let pool = Pool::of(Bounds { hard_cap: 1, ..BOUNDS }, 2, keeps);
        let tasks = [(); 3].map(|()| pool.spawn(|pool| (0..3).for_each(|_| acquire_and_do_anything(pool))));
        for task in tasks {
            task.join().unwrap();
        }
        pool.at_rest(2);
    });
}

fn acquire_and_do_anything(pool: &Pool) {
    let mut draw = thread_rng();
    let held = match draw.gen_range(0..10) {
        0..4 => pool.acquire(Caller::Waits),
        4..7 => pool.acquire(soon()),
        7 => pool.acquire(Caller::LeavesChecking(Leave::TimedOut)),
        8 => pool.acquire(Caller::Tries),
        _ => None,
    };
    match draw.gen_range(0..40) {
        0..10 => pool.set_limit(draw.gen_range(1..3)),
        10..20 => pool.kill(draw.gen_range(0..6)),
        20..24 => pool.failing.store(draw.gen_range(1..3), Relaxed),
        24..30 => {
            let max_size = draw.gen_range(1..3);
            let known = pool.slots.bounds();
            pool.slots.set_bounds(known, known.with_size(1, max_size, false), pool.now);
            pool.fill();
        }
        30..33 => drop(pool.slots.sample(pool.now)),
        33 => drop(pool.slots.close_idle_since(Some(pool.now))),
        34 => pool.slots.close_unproven(),
        35 => drop(pool.slots.expire(pool.now + Duration::from_secs(draw.gen_range(0..3)))),
        36 => pool.slots.start_drain(),
        37 => pool.slots.close(),
        _ => {}
    }
    pool.look();
    if let Some(conn) = held {
        pool.give_back(conn);
    }
}

/// One runtime goes while the driver begins to run in another.
#[test]
fn a_driver_that_parks_while_the_one_before_it_goes_is_woken_by_who_comes() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 1);
        pool.slots.set_driven(true);
        let goes = pool.spawn(|pool| pool.slots.set_driven(false));
        let comes = pool.spawn(|pool| {
            pool.slots.set_driven(true);
            let seen = pool.slots.counts().acquires.started;
            block_on(poll_fn(|cx| pool.slots.poll_busy(seen, cx.waker())));
        });
        goes.join().unwrap();
        let conn = pool.acquire(Caller::Waits).expect("one is idle");
        comes.join().unwrap();
        pool.give_back(conn);
        pool.at_rest(1);
    });
}

/// The keeper of deadlines parks while nobody waits.
#[test]
fn whoever_waits_wakes_the_keeper_of_deadlines() {
    interleave(|| {
        let pool = Pool::new(BOUNDS, 1);
        let held = pool.acquire(Caller::Waits).expect("one is idle");
        let keeper = pool.spawn(|pool| block_on(poll_fn(|cx| pool.slots.poll_waited(cx.waker()))));
        let waiting = pool.spawn(|pool| pool.call(Caller::Waits));
        keeper.join().unwrap();
        pool.give_back(held);
        assert!(waiting.join().unwrap());
        pool.at_rest(1);
    });
}
