//! What becomes of a command whose output nobody reads any more, as in `rollmill status | head`.
//!
//! Rust ignores SIGPIPE, and `println!` panics then. SIGPIPE cannot be turned on again for the whole process: a write to a connection
//! that the server has closed would end `send` and `bench` without a word. So that one panic is what ends a command, quietly, with the
//! code that a shell shows for a program that SIGPIPE has ended.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::process::ExitCode;

/// 128 and the number of SIGPIPE.
const NOBODY_READS: u8 = 141;

/// Runs a command; what it prints into a closed pipe ends it without a message. Every other panic is what it was.
pub(super) fn quietly(command: impl FnOnce() -> ExitCode) -> ExitCode {
    let loud = take_hook();
    set_hook(Box::new(move |info| {
        if !is_closed_pipe(info.payload()) {
            loud(info);
        }
    }));
    match catch_unwind(AssertUnwindSafe(command)) {
        Ok(code) => code,
        Err(panic) if is_closed_pipe(&*panic) => ExitCode::from(NOBODY_READS),
        Err(panic) => resume_unwind(panic),
    }
}

/// The standard library's own panic, by its text: it carries no other mark.
fn is_closed_pipe(payload: &(dyn Any + Send)) -> bool {
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    text.is_some_and(|text| text.starts_with("failed printing to std") && text.contains("Broken pipe"))
}
