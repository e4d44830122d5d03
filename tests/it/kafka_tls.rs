//! The real binary on a broker that speaks only TLS and authenticates clients by SCRAM.

use std::path::{Path, PathBuf};

use crate::kafka::broker::Kafka;
use crate::postgres;
use crate::support::Server;

const PASSWORD: &str = "to-the-mill-and-back";

/// A broker's key and certificate for 127.0.0.1, with the CA and the user's password next to them,
/// in the layout that scripts/kafka expects.
fn certified(dir: &Path) -> PathBuf {
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
    // OpenSSL takes a certificate whose issuer equals its subject for a self-signed one, so the CA
    // needs a different name.
    params.distinguished_name.push(rcgen::DnType::CommonName, "authority of this test");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).expect("an authority");
    let issuer = rcgen::Issuer::new(params, authority_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("signed");
    std::fs::create_dir_all(dir).expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("written");
    write("broker.pem", &(key.serialize_pem() + &certificate.pem()));
    write("broker.pem.ca", &authority.pem());
    write("broker.pem.password", PASSWORD);
    dir.join("broker.pem")
}

fn properties(authority: &Path, password: &str) -> String {
    let fixed = "security.protocol=SASL_SSL,sasl.mechanism=SCRAM-SHA-512,sasl.username=rollmill";
    format!("{fixed},ssl.ca.location={},sasl.password={password}", authority.display())
}

fn cli(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rollmill"));
    std::env::vars()
        .filter(|(name, _)| name.starts_with("ROLLMILL_"))
        .for_each(|(name, _)| _ = command.env_remove(name));
    command.args(args).envs(
        env.iter().map(|(key, value)| {
            (format!("ROLLMILL_{}", key.replace('.', "_").to_uppercase()), value)
        }),
    );
    let output = command.output().expect("the command runs");
    (
        output.status.code(),
        String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8"),
    )
}

#[test]
fn a_cluster_that_speaks_tls_and_scram_is_served_and_a_wrong_authority_or_password_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = certified(&dir.path().join("broker"));
    let foreign = certified(&dir.path().join("foreign")).with_extension("pem.ca");
    let authority = file.with_extension("pem.ca");
    let broker = Kafka::start_tls(&file);
    let server = postgres::shared();
    let (brokers, url) = (broker.brokers(), server.url(&server.database()));
    let archive = format!("file://{}", dir.path().join("archive").display());
    let right = properties(&authority, PASSWORD);
    let with = |properties: &str| {
        [
            ("kafka.brokers", brokers.clone()),
            ("kafka.properties", properties.to_owned()),
            ("kafka.timeout", "1m".to_owned()),
            ("store.url", url.clone()),
            ("archive.url", archive.clone()),
            ("shards.count", "4".to_owned()),
            ("flush.interval", "200ms".to_owned()),
            ("server.start_wait", "2m".to_owned()),
        ]
    };
    let run = |args: &[&str], properties: &str| {
        let env = with(properties);
        cli(args, &env.each_ref().map(|(key, value)| (*key, value.as_str())))
    };
    let (code, said) = run(&["topic", "create"], &right);
    assert_eq!(code, Some(0), "{said}");

    let env = with(&right);
    let node = Server::start(
        &dir.path().join("data"),
        &env.each_ref().map(|(key, value)| (*key, value.as_str())),
    );
    let events: Vec<String> =
        (0..500).map(|id| format!(r#"{{"metric":"sales","id":"{id}","value":2}}"#)).collect();
    assert_eq!(node.post(&format!("[{}]", events.join(","))).0, 202);
    let answer = node.await_query("/v1/query?metric=sales&step=all&agg=count,sum", |answer| {
        answer["series"][0]["points"][0]["count"] == 500
    });
    assert_eq!(answer["series"][0]["points"][0]["sum"], 1_000, "{answer}");
    assert_eq!(node.stop(), Some(0));

    for (properties, says) in [
        (properties(&foreign, PASSWORD), ["certificate verify failed", "check ssl.ca.location"]),
        (
            properties(&authority, "guessed"),
            ["SASL authentication error", "check sasl.mechanism, sasl.username and sasl.password"],
        ),
    ] {
        let data = dir.path().join("refused").display().to_string();
        for args in
            [&["serve", "--listen", "127.0.0.1:0", "--data", &data][..], &["topic", "describe"]]
        {
            let (code, said) = run(args, &properties);
            assert_eq!(code, Some(1), "{said}");
            assert!(
                says.iter().all(|part| said.contains(part)) && said.contains(&brokers),
                "{said}"
            );
            assert!(!said.contains("waits"), "no waiting mends it: {said}");
            assert!(
                !said.contains(PASSWORD) && !said.contains("guessed") && !said.contains("panicked"),
                "{said}"
            );
        }
    }
}

#[test]
fn a_build_with_tls_says_so() {
    let (code, said) = cli(&["version"], &[]);
    assert!(code == Some(0) && said.contains("kafka-tls"), "{said}");
}
