//! An S3 server on loopback over a directory, for `make cluster`. It prints its endpoint and ends
//! when standard input is closed.
#![allow(unreachable_pub)] // shares a module with the tests

#[path = "s3.rs"]
mod s3;

use std::io::{Read, Write};

fn main() -> std::io::Result<()> {
    let root = std::env::args_os()
        .nth(1)
        .ok_or_else(|| std::io::Error::other("usage: s3-server DIRECTORY"))?;
    let server = s3::S3Server::start(std::path::Path::new(&root));
    writeln!(std::io::stdout(), "{}", server.endpoint)?;
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
