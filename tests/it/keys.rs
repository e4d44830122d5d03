//! API keys as users handle them: created, used, and revoked while the server runs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Server, agent, wait_until};

/// A change takes effect within a second plus one read of the file; the test allows for a slow
/// machine.
const SOON: Duration = Duration::from_secs(60);

fn keys(args: &[&str], file: &Path) -> (Option<i32>, String, String) {
    let file = file.display().to_string();
    let output = Server::cli(&[&["keys"], args, &["--file", &file]].concat());
    let text = |bytes| String::from_utf8(bytes).expect("text").trim().to_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn status(server: &Server, path: &str, key: &str) -> u16 {
    let request = agent()
        .get(format!("{}{path}", server.url))
        .header("authorization", format!("Bearer {key}"));
    request.call().expect("an answer").status().as_u16()
}

fn within_soon(what: &str, mut pass: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !pass() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn keys_are_made_listed_and_revoked_while_the_server_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, file) = (dir.path().join("data"), dir.path().join("keys.toml"));
    let (code, writer, said) = keys(&["add", "--tenant", "shop", "--scopes", "write"], &file);
    assert_eq!(
        (code, writer.lines().count(), writer.starts_with("rm_")),
        (Some(0), 1, true),
        "{writer}"
    );
    assert!(said.contains("only time") && !said.contains(&writer), "{said}");
    let stored = std::fs::read_to_string(&file).expect("a file");
    assert!(!stored.contains(&writer), "the key itself is stored");
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);

    let server = Server::start(&data, &[("auth.keys_file", &file.display().to_string())]);
    let event = r#"{"metric":"m"}"#;
    let bearer = format!("Bearer {writer}");
    let as_writer = [("authorization", bearer.as_str())];
    assert_eq!(server.post(event).0, 401, "no key");
    assert_eq!(server.post_as(event.as_bytes(), "application/json", &as_writer).0, 202);
    assert_eq!(status(&server, "/v1/query?metric=m", &writer), 403, "a key that only writes");

    let (code, reader, _) =
        keys(&["add", "--tenant", "shop", "--scopes", "read,admin", "--expires", "1d"], &file);
    assert_eq!(code, Some(0));
    within_soon("the new key is not in force", || {
        status(&server, "/v1/query?metric=m", &reader) == 200
    });
    assert_eq!(status(&server, "/v1/quarantine", &reader), 200);

    let (_, listed, _) = keys(&["list", "--json"], &file);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(
        (&listed["keys"][0]["expires"], &listed["keys"][1]["tenant"]),
        (&serde_json::Value::Null, &"shop".into())
    );
    assert!(listed["keys"][1]["expires"].as_str().is_some_and(|at| at.ends_with('Z')), "{listed}");
    let name = listed["keys"][0]["name"].as_str().expect("a name").to_owned();
    assert!(writer.starts_with(&name) && name.len() < 16);

    let log = || std::fs::read_to_string(data.with_extension("server.log")).expect("a log");
    let unusable = || log().matches("changed and cannot be used").count();
    std::fs::copy(&file, dir.path().join("good")).expect("a copy");
    // Renamed into place, as editors do: a half-written file may be a valid one without keys.
    std::fs::write(dir.path().join("bad"), "keys = 7").expect("written");
    std::fs::rename(dir.path().join("bad"), &file).expect("moved");
    wait_until("the broken file was read", || unusable() == 1);
    assert_eq!(
        server.post_as(event.as_bytes(), "application/json", &as_writer).0,
        202,
        "a broken file revokes nothing"
    );
    std::fs::rename(dir.path().join("good"), &file).expect("put back");

    assert_eq!(keys(&["revoke", &name], &file).0, Some(0));
    within_soon("a revoked key still writes", || {
        server.post_as(event.as_bytes(), "application/json", &as_writer).0 == 401
    });
    assert_eq!(status(&server, "/v1/query?metric=m", &reader), 200, "the other key stays");
    let (code, _, said) = keys(&["revoke", &name], &file);
    assert_eq!((code, said.contains("no key")), (Some(1), true), "{said}");

    std::fs::remove_file(&file).expect("removed");
    wait_until("the loss of the file was noticed", || unusable() == 2);
    assert_eq!(server.post(event).0, 401, "losing the file opens nothing");
    assert_eq!(server.stop(), Some(0));
    let log = log();
    assert!(!log.contains(&writer) && !log.contains(&reader), "{log}");
}

#[test]
fn an_open_websocket_of_a_revoked_key_is_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("keys.toml");
    let (_, key, _) = keys(&["add", "--tenant", "shop", "--scopes", "write"], &file);
    let server =
        Server::start(&dir.path().join("data"), &[("auth.keys_file", &file.display().to_string())]);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut request = format!("{}/v1/ws", server.url.replace("http", "ws"))
            .into_client_request()
            .expect("a request");
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {key}").parse().expect("a header"));
        let (mut ws, _) = tokio_tungstenite::connect_async(request).await.expect("connected");
        ws.send(Message::text(r#"{"seq":1,"events":[{"metric":"m"}]}"#)).await.expect("sent");
        let ack =
            ws.next().await.expect("an answer").expect("an answer").into_text().expect("text");
        assert!(ack.contains("\"ack\":1"), "{ack}");
        assert_eq!(keys(&["revoke", &key[..11]], &file).0, Some(0));
        let closed = tokio::time::timeout(SOON, async {
            loop {
                match ws.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => break u16::from(frame.code),
                    Some(Ok(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        assert_eq!(closed.await.expect("closed soon"), 1008);
    });
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("keys.toml");
    let (code, _, said) = keys(&["list"], &file);
    assert_eq!((code, said.contains("keys.toml")), (Some(1), true), "{said}");
    assert_eq!(keys(&["revoke", "rm_00000000"], &file).0, Some(1));
    assert!(!file.exists(), "revoking makes no file");
    for wrong in
        [["--tenant", "a b", "--scopes", "write"], ["--tenant", "a", "--scopes", "everything"]]
    {
        assert_eq!(keys(&[&["add"], &wrong[..]].concat(), &file).0, Some(2), "{wrong:?}");
    }
    let output = Server::cli(&["keys", "list"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.contains("--file")), (Some(2), true), "{said}");
}

#[test]
fn every_command_shows_an_example() {
    let commands = "serve|send|query|verify|bench|quarantine list|quarantine release|quarantine \
                    discard|keys add|keys list|keys revoke|check-config";
    for command in commands.split('|') {
        let output =
            Server::cli(&[&command.split(' ').collect::<Vec<_>>()[..], &["--help"]].concat());
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            help.contains("Example") && help.contains(&format!("rollmill {command}")),
            "{command}: {help}"
        );
    }
}
