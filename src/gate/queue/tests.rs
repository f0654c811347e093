//! The queue against a list, by random sequences.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::panic::Location;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Op {
    /// With a deadline so many milliseconds after the start.
    PushLast(Class, u64),
    PushFirst(Class, u64),
    /// The clock says so many milliseconds.
    Expire(u64),
    /// Is somebody impatient at so many milliseconds?
    Look(u64),
    AnswerFirst,
    AnswerLast,
    /// Leaves from the place that many from the front, answered ones included.
    Leave(usize),
}

impl Held for u32 {
    fn begin_hold(&mut self, _: At) {}

    fn end_hold(&self) {}
}

#[test]
fn a_waiter_fits_into_a_line_of_the_cache() {
    assert!(size_of::<Waiter<Box<u32>>>() <= 64, "{} bytes", size_of::<Waiter<Box<u32>>>());
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![
        Just(Class::Exempt),
        Just(Class::Critical),
        Just(Class::High),
        Just(Class::Low),
        Just(Class::Background)
    ]
}

fn granted(item: u32) -> Answer<u32> {
    Answer::Granted(Grant { item, unproven: false })
}

fn due() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..100, 1 => 0u64..60_000]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (class(), due()).prop_map(|(class, due)| Op::PushLast(class, due)),
        1 => (class(), due()).prop_map(|(class, due)| Op::PushFirst(class, due)),
        1 => (0u64..100).prop_map(Op::Expire),
        2 => (0u64..3_000).prop_map(Op::Look),
        2 => Just(Op::AnswerFirst),
        1 => Just(Op::AnswerLast),
        2 => (0usize..40).prop_map(Op::Leave),
    ]
}

proptest! {
    #[test]
    fn it_behaves_like_a_list_by_class_one_can_leave_from_anywhere(ops in prop::collection::vec(op(), 0..200)) {
        let mut queue = Queue::with_capacity(4);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        // All of them come at the start.
        let times = |due| Times { now: start, deadline: at(due), at: Location::caller() };
        let patience = |due: u64| (due / 20).clamp(20, 1_000);
        // In the order in which they are to be served.
        let mut line: VecDeque<(Key, u64, usize)> = VecDeque::new();
        // `None` for a deadline that came.
        let mut answered: Vec<(Key, Option<u32>)> = Vec::new();
        let (mut next, mut looked) = (0, 0);
        for op in ops {
            match op {
                Op::PushLast(class, due) => {
                    let behind = line.partition_point(|(_, _, other)| *other <= class.line());
                    line.insert(behind, (queue.push_last(class, times(due), None), due, class.line()));
                }
                Op::PushFirst(class, due) => {
                    let behind = line.partition_point(|(_, _, other)| *other < class.line());
                    line.insert(behind, (queue.push_first(class, times(due)), due, class.line()));
                }
                Op::Expire(now) => {
                    let wakers = queue.answer_until(at(now), || Answer::TimedOut);
                    let due = line.iter().filter(|(_, due, _)| *due <= now);
                    answered.extend(due.map(|(key, ..)| (*key, None)));
                    let before = line.len();
                    line.retain(|(_, due, _)| *due > now);
                    prop_assert_eq!(wakers.len(), before - line.len());
                }
                Op::Look(now) => {
                    looked = looked.max(now);
                    let now = looked;
                    let impatient = line.iter().any(|(_, due, _)| patience(*due) <= now);
                    // A float is not exact to the millisecond.
                    let near = line.iter().any(|(_, due, _)| patience(*due).abs_diff(now) <= 1);
                    prop_assert!(near || queue.is_impatient(at(now)) == impatient);
                }
                Op::AnswerFirst | Op::AnswerLast => {
                    next += 1;
                    let first = matches!(op, Op::AnswerFirst);
                    let (whom, told) = if first {
                        (line.pop_front(), queue.answer_first(granted(next)))
                    } else {
                        (line.pop_back(), queue.answer_last(granted(next)))
                    };
                    prop_assert_eq!(whom.is_some(), told.is_ok());
                    answered.extend(whom.map(|(key, ..)| (key, Some(next))));
                }
                Op::Leave(at) if at < line.len() => {
                    let (key, ..) = line.remove(at).expect("at is in line");
                    prop_assert!(queue.leave(key).is_err());
                }
                Op::Leave(_) => {
                    if let Some((key, value)) = answered.pop() {
                        let told = queue.take(key, Waker::noop());
                        match value {
                            Some(value) => prop_assert!(matches!(told, Ok(Answer::Granted(got)) if got.item == value)),
                            None => prop_assert!(matches!(told, Ok(Answer::TimedOut))),
                        }
                    }
                }
            }
            prop_assert_eq!(queue.len(), line.len());
            let lengths = std::array::from_fn(|class| line.iter().filter(|(_, _, other)| *other == class).count());
            prop_assert_eq!(queue.lengths(), lengths);
            let due = line.iter().map(|(_, due, _)| at(*due)).min();
            prop_assert_eq!(queue.earliest(), due);
            let (first, last) = (line.front().map(|(key, ..)| *key), line.back().map(|(key, ..)| *key));
            prop_assert_eq!(queue.lines.iter().find_map(|line| line.first), first);
            prop_assert_eq!(queue.lines.iter().rev().find_map(|line| line.last), last);
        }
    }
}
