//! What becomes of a command whose output nobody reads any more, as in `rollmill status | head`, or
//! cannot be written, as to a full disk.
//!
//! Rust ignores SIGPIPE, and `println!` panics then. SIGPIPE cannot be turned on again for the
//! whole process: a write to a connection that the server has closed would end `send` and `bench`
//! without a word. So that one panic is what ends a command, quietly, with the code that a shell
//! shows for a program that SIGPIPE has ended. Any other failure to print is a failure of the
//! command.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::process::ExitCode;

/// 128 and the number of SIGPIPE.
const NOBODY_READS: u8 = 141;

/// How the panic of `println!` begins; the standard library gives it no other mark.
const NOT_PRINTED: &str = "failed printing to std";

/// Runs a command; what it prints into a closed pipe ends it without a message, and what cannot be
/// printed otherwise with one. Every other panic is what it was.
pub(super) fn run_quietly(command: impl FnOnce() -> ExitCode) -> ExitCode {
    let loud = take_hook();
    set_hook(Box::new(move |info| {
        if not_printed(info.payload()).is_none() {
            loud(info);
        }
    }));
    let panic = match catch_unwind(AssertUnwindSafe(command)) {
        Ok(code) => return code,
        Err(panic) => panic,
    };
    match not_printed(&*panic) {
        None => resume_unwind(panic),
        Some(why) if why.contains("Broken pipe") => ExitCode::from(NOBODY_READS),
        Some(why) => {
            #[expect(
                clippy::let_underscore_must_use,
                reason = "standard error may be what could not be written: the code has to do then"
            )]
            let _ = writeln!(std::io::stderr(), "rollmill: cannot write the output: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Why something could not be printed, if this panic says so.
fn not_printed(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(payload.downcast_ref::<&str>().copied())?;
    text.strip_prefix(NOT_PRINTED)?.split_once(": ").map(|(_, why)| why)
}
