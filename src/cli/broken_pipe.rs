//! Ends a command whose output is closed, as in `rollmill status | head`, or cannot be written, as
//! on a full disk.
//!
//! Rust ignores SIGPIPE, so `println!` panics on a closed pipe. Restoring SIGPIPE for the process
//! is no option: a write to a connection that the server has closed would kill `send` and `bench`
//! without a message. Instead, this one panic ends the command quietly, with the exit code that a
//! shell shows for SIGPIPE. Any other failure to print fails the command.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::process::ExitCode;

/// 128 plus the number of SIGPIPE.
const OUTPUT_CLOSED: u8 = 141;

/// Start of the panic message of `println!`, the only way to recognise that panic.
const NOT_PRINTED: &str = "failed printing to std";

/// Runs a command. Printing to a closed pipe ends it without a message, any other failure to print
/// with one. Other panics are passed on.
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
        Some(why) if why.contains("Broken pipe") => ExitCode::from(OUTPUT_CLOSED),
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

/// The reason why printing failed, if the panic is one of `println!`.
fn not_printed(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(payload.downcast_ref::<&str>().copied())?;
    text.strip_prefix(NOT_PRINTED)?.split_once(": ").map(|(_, why)| why)
}
