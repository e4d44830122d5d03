//! What a request costs, in CPU time. Time on the wall says little of that: other tests and
//! programs have the cores meanwhile, and the threads that read large bodies come last on a busy
//! machine.

use std::time::Duration;

/// How the threads that read large bodies are called.
const READER: &str = "reader";

/// Measures the CPU time of this thread and of all threads that read bodies. Those of other tests
/// count as well, but there are few of them, and they run below the priority of others, too.
pub(super) struct CpuWatch(Duration);

impl CpuWatch {
    pub(super) fn start() -> Self {
        Self(spent())
    }

    /// The time since `start` was called. A reader of another test that ended takes its time with
    /// it.
    pub(super) fn elapsed(&self) -> Duration {
        spent().saturating_sub(self.0)
    }
}

fn spent() -> Duration {
    let own = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux");
    let own = of_thread(&own).expect("the format of proc(5)").1;
    // A thread may end while the list is read.
    let all = std::fs::read_dir("/proc/self/task").expect("Linux");
    let all = all.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let readers = all.filter_map(|stat| {
        let (name, spent) = of_thread(&stat)?;
        (name == READER).then_some(spent)
    });
    own + readers.sum::<Duration>()
}

/// The name of a thread and its CPU time, as they stand in its `stat`: in hundredths of a second.
fn of_thread(stat: &str) -> Option<(&str, Duration)> {
    // The name may hold spaces and parentheses itself.
    let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let mut ticks = fields.split(' ').skip(11);
    let (user, system) = (ticks.next()?.parse::<u64>().ok()?, ticks.next()?.parse::<u64>().ok()?);
    Some((name, Duration::from_millis(10 * (user + system))))
}

#[test]
fn the_time_of_a_thread_is_read_whatever_it_is_called() {
    let stat = "7 (a) (b c) R 1 2 3 0 -1 4 100 0 0 0 21 4 0 0 20 0 1 0 41808";
    assert_eq!(of_thread(stat), Some(("a) (b c", Duration::from_millis(250))));
    assert_eq!(of_thread("7 (a) R 1 2"), None);
    let watch = CpuWatch::start();
    while watch.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
}
