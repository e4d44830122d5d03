//! The files in docker/: every variable, command line, path and name in them is checked against the
//! code that reads it, so that a renamed key, flag or file fails the tests. No container is
//! started.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use rollmill::cluster::tls::MeshTls;
use rollmill::config::{Config, SecretUrl};
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::{Server, agent, free_port, wait_until};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// A mapping with its merge keys (`<<`) applied: its own entries win, then those of earlier merged
/// mappings.
fn merged(node: &Yaml) -> Yaml {
    match node {
        Yaml::Array(items) => Yaml::Array(items.iter().map(merged).collect()),
        Yaml::Hash(pairs) => {
            let key = Yaml::String("<<".to_owned());
            let mut all = yaml_rust2::yaml::Hash::new();
            pairs
                .iter()
                .filter(|(name, _)| **name != key)
                .for_each(|(name, value)| _ = all.insert(name.clone(), merged(value)));
            let from = pairs
                .get(&key)
                .map(|from| from.as_vec().map_or_else(|| vec![from.clone()], Clone::clone));
            for part in from.into_iter().flatten() {
                for (name, value) in merged(&part).as_hash().expect("a mapping is merged") {
                    if !all.contains_key(name) {
                        all.insert(name.clone(), value.clone());
                    }
                }
            }
            Yaml::Hash(all)
        }
        other => other.clone(),
    }
}

/// A scalar as Compose passes it to a container. `${NAME:-default}` becomes its default,
/// `${NAME:?why}` a password.
fn text(node: &Yaml) -> String {
    let raw = match node {
        Yaml::String(text) | Yaml::Real(text) => text.clone(),
        Yaml::Integer(number) => number.to_string(),
        other => panic!("no text: {other:?}"),
    };
    let (mut done, mut rest) = (String::new(), raw.as_str());
    while let Some((before, after)) = rest.split_once("${") {
        let (name, tail) = after.split_once('}').expect("a variable ends");
        done.push_str(before);
        done.push_str(name.split_once(":-").map_or("0123abcd", |(_, default)| default));
        rest = tail;
    }
    (done + rest).replace("$$", "$")
}

fn texts(node: &Yaml) -> Vec<String> {
    node.as_vec().map(|items| items.iter().map(text).collect()).unwrap_or_default()
}

struct Service {
    name: String,
    node: Yaml,
}

impl Service {
    fn environment(&self) -> BTreeMap<String, String> {
        let pairs = self.node["environment"].as_hash();
        pairs
            .map(|pairs| pairs.iter().map(|(name, value)| (text(name), text(value))).collect())
            .unwrap_or_default()
    }
    fn image(&self) -> String {
        text(&self.node["image"])
    }
    fn is_ours(&self) -> bool {
        self.image().starts_with("rollmill:")
    }
    fn command(&self) -> Vec<String> {
        texts(&self.node["command"])
    }
    fn is_node(&self) -> bool {
        self.is_ours() && self.command().first().is_some_and(|word| word == "serve")
    }
}

fn services() -> Vec<Service> {
    let documents = YamlLoader::load_from_str(&read("docker/compose.yaml")).expect("YAML");
    let file = merged(&documents[0]);
    let services = file["services"].as_hash().expect("services");
    services.iter().map(|(name, node)| Service { name: text(name), node: node.clone() }).collect()
}

/// The image's own variables, which those of a service override.
fn image_environment() -> BTreeMap<String, String> {
    let file = read("docker/Dockerfile");
    let line = file.lines().find_map(|line| line.strip_prefix("ENV ")).expect("ENV");
    line.split(' ')
        .map(|pair| pair.split_once('=').expect("NAME=VALUE"))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
}

fn config(service: &Service) -> Config {
    let mut environment = image_environment();
    environment.extend(service.environment());
    let file = root().join("config/rollmill.toml");
    // Loads the file as the command does: a node loads all of it, other commands a part.
    let load = if service.is_node() { Config::load } else { Config::load_part };
    load(Some(&file), environment.into_iter(), &[])
        .unwrap_or_else(|why| panic!("{}: {why}", service.name))
}

#[test]
fn every_service_is_configured_with_keys_that_exist() {
    let services = services();
    let ours: Vec<&Service> = services.iter().filter(|service| service.is_ours()).collect();
    let nodes: Vec<&Service> = ours.iter().copied().filter(|service| service.is_node()).collect();
    assert_eq!((ours.len(), nodes.len()), (6, 3));
    for service in &ours {
        config(service);
        assert_eq!(service.image(), concat!("rollmill:", env!("CARGO_PKG_VERSION")));
    }
    let peers: BTreeSet<String> = nodes.iter().map(|node| format!("{}:7946", node.name)).collect();
    for node in &nodes {
        let config = config(node);
        assert_eq!(config.node.name.as_ref(), Some(&node.name));
        assert_eq!(config.cluster.peers.0.iter().cloned().collect::<BTreeSet<_>>(), peers);
        let url =
            |url: &Option<SecretUrl>| url.as_ref().map(SecretUrl::to_string).unwrap_or_default();
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
        };
        for (value, host) in [
            (url(&config.store.url), "@postgres:5432/"),
            (url(&config.store.read_url), "@postgres:5432/"),
            (config.kafka.brokers.clone().unwrap_or_default(), "kafka:9092"),
            (url(&config.archive.endpoint), "//s3:9000"),
            (url(&config.query.redis), "//redis:6379"),
            (path(&config.cluster.cert), &format!("/{}.pem", node.name)),
            (path(&config.cluster.key), &format!("/{}.key", node.name)),
        ] {
            assert!(value.contains(host), "{}: {value} is not of {host}", node.name);
        }
        let nginx = read("docker/nginx.conf");
        assert!(
            nginx.contains(&format!("server {}:8080 ", node.name)),
            "nginx knows nothing of {}",
            node.name
        );
    }
    let kafka =
        services.iter().find(|service| service.name == "kafka").expect("kafka").environment();
    assert_eq!(kafka["KAFKA_ADVERTISED_LISTENERS"], "PLAINTEXT://kafka:9092");
    assert!(
        read("scripts/kafka").contains(&format!("version={}\n", text(&services_image("kafka")))),
        "the version that is tested"
    );
}

/// The image tag of a service.
fn services_image(name: &str) -> Yaml {
    let service = services().into_iter().find(|service| service.name == name).expect("a service");
    Yaml::String(service.image().rsplit_once(':').expect("a tag").1.to_owned())
}

#[test]
fn services_are_pinned_bounded_and_wait_for_what_is_there() {
    let services = services();
    let named = |name: &str| services.iter().find(|service| service.name == name);
    for service in &services {
        let image = service.image();
        assert!(
            image.rsplit_once(':').is_some_and(|(_, tag)| tag != "latest" && tag.contains('.')),
            "{}: {image}",
            service.name
        );
        let once = service.node["restart"].as_str() == Some("no");
        assert!(
            once || !service.node["mem_limit"].is_badvalue(),
            "{} may take all memory",
            service.name
        );
        for (other, how) in service.node["depends_on"].as_hash().into_iter().flatten() {
            let other = named(&text(other)).unwrap_or_else(|| {
                panic!("{} waits for {other:?}, which is not there", service.name)
            });
            match how["condition"].as_str() {
                Some("service_healthy") => {
                    assert!(
                        other.is_node() || !other.node["healthcheck"].is_badvalue(),
                        "{} has no health check",
                        other.name
                    );
                }
                Some("service_completed_successfully") => {
                    assert_eq!(other.node["restart"].as_str(), Some("no"), "{}", other.name)
                }
                other => panic!("{}: {other:?}", service.name),
            }
        }
        for volume in
            texts(&service.node["volumes"]).iter().filter(|volume| volume.starts_with('.'))
        {
            let source = root().join("docker").join(volume.split(':').next().expect("a source"));
            assert!(source.is_file(), "{}: {} is not there", service.name, source.display());
        }
    }
}

/// The words of the JSON array at the end of a line.
fn words(line: &str) -> Vec<String> {
    serde_json::from_str(&line[line.find('[').expect("an array")..]).expect("JSON")
}

#[test]
fn every_command_line_is_one_of_ours() {
    let check = |place: &str, words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        rollmill::cli::check(&words).unwrap_or_else(|why| panic!("{place}: {why}"));
    };
    let file = read("docker/Dockerfile");
    let of = |start: &str| {
        words(file.lines().find(|line| line.starts_with(start)).expect("the instruction"))
    };
    assert_eq!(of("ENTRYPOINT "), ["rollmill"]);
    check("CMD", &of("CMD "));
    check("HEALTHCHECK", &of("HEALTHCHECK ")[1..]);
    let services = services();
    for service in services
        .iter()
        .filter(|service| service.is_ours() && service.node["entrypoint"].is_badvalue())
    {
        check(&service.name, &service.command());
    }
    let mut found = 0;
    for path in ["docker/compose.yaml", "docker/setup", "docker/Dockerfile"] {
        // Command lines in comments and scripts, up to the first shell operator.
        for line in read(path)
            .lines()
            .filter(|line| line.contains(" rollmill ") && !line.contains("docker build"))
        {
            let tail = &line[line.find(" rollmill ").expect("found") + 10..];
            let tail = tail.split(['>', '|', ';', '`']).next().unwrap_or_default();
            if tail.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains("exec")
                || path == "docker/setup"
            {
                check(
                    line,
                    &tail
                        .split_whitespace()
                        .map(|word| word.trim_matches('"').to_owned())
                        .collect::<Vec<_>>(),
                );
                found += 1;
            }
        }
    }
    assert_eq!(found, 2, "status in compose.yaml, keys in setup");
}

#[test]
fn what_the_image_is_made_of_is_there() {
    let file = read("docker/Dockerfile");
    let copied: Vec<&str> = file.lines().filter_map(|line| line.strip_prefix("COPY ")).collect();
    for source in copied.iter().filter(|copy| !copy.starts_with("--from")).flat_map(|copy| {
        let words: Vec<&str> = copy.split(' ').collect();
        words[..words.len() - 1].to_vec()
    }) {
        assert!(root().join(source).exists(), "{source} is not there");
    }
    // Cargo requires the files of every target in the manifest, whichever target is built.
    for room in ["src", "benches", "tests"] {
        assert!(copied.contains(&format!("{room} {room}").as_str()), "{room}");
    }
    let toolchain =
        file.lines().find_map(|line| line.strip_prefix("FROM rust:")).expect("the toolchain");
    let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let wanted = manifest["package"]["rust-version"].as_str().expect("a version");
    assert!(toolchain.starts_with(&format!("{wanted}-")), "{toolchain} for rust-version {wanted}");
}

fn setup(secrets: &Path, authority: &Path, nodes: &[&str]) {
    let ours = Path::new(env!("CARGO_BIN_EXE_rollmill")).parent().expect("a directory");
    let path = format!("{}:{}", ours.display(), std::env::var("PATH").expect("PATH"));
    let mut command = Command::new("sh");
    command
        .arg(root().join("docker/setup"))
        .args([secrets, authority])
        .args(nodes)
        .env("PATH", path);
    std::env::vars()
        .filter(|(name, _)| name.starts_with("ROLLMILL_"))
        .for_each(|(name, _)| _ = command.env_remove(name));
    let done = command.output().expect("sh runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn the_setup_makes_what_the_nodes_read_and_makes_it_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (secrets, authority) = (dir.path().join("secrets"), dir.path().join("authority"));
    [&secrets, &authority].iter().for_each(|dir| std::fs::create_dir(dir).expect("made"));
    setup(&secrets, &authority, &["node-1", "node-2"]);
    let here = |path: &Path| secrets.join(path.strip_prefix("/secrets").expect("in the volume"));
    let services = services();
    let node = |name: &str| {
        services.iter().find(|service| service.name == name).map(config).expect("a node")
    };
    let files = |name: &str| -> Vec<PathBuf> {
        let config = node(name);
        let cluster = &config.cluster;
        [&cluster.cert, &cluster.key, &cluster.ca, &cluster.cookie_file, &config.auth.keys_file]
            .map(|path| here(path.as_ref().expect("set")))
            .into()
    };
    let [one, two] = ["node-1", "node-2"].map(|name| {
        let files = files(name);
        (MeshTls::load(&files[0], &files[1], &files[2]).expect("usable"), files)
    });
    assert_eq!(std::fs::read_to_string(&one.1[3]).expect("the cookie").trim().len(), 64);
    assert_eq!(handshake(&one.0, &two.0, "node-2"), Ok(()));
    assert!(handshake(&one.0, &two.0, "node-1").is_err(), "another node's name");

    // The keys file admits this key and no other.
    let server = Server::start_on(
        &dir.path().join("data"),
        free_port(),
        &[("auth.keys_file", &one.1[4].display().to_string())],
    );
    let key = std::fs::read_to_string(secrets.join("demo.key")).expect("the key");
    let ask = |key: &str| {
        let request = agent()
            .get(format!("{}/v1/status", server.url))
            .header("authorization", format!("Bearer {}", key.trim()));
        request.call().expect("an answer").status().as_u16()
    };
    assert_eq!((ask(&key), ask("another")), (200, 401));

    let before: Vec<_> =
        one.1.iter().chain(&two.1).map(|file| std::fs::read(file).expect("there")).collect();
    setup(&secrets, &authority, &["node-1", "node-2", "node-3"]);
    let after: Vec<_> =
        one.1.iter().chain(&two.1).map(|file| std::fs::read(file).expect("there")).collect();
    assert!(before == after, "what is there stays");
    let third = files("node-3");
    let third = MeshTls::load(&third[0], &third[1], &third[2]).expect("usable");
    assert_eq!(handshake(&third, &one.0, "node-1"), Ok(()), "of the same authority");
    std::fs::remove_file(authority.join("ca.key")).expect("removed");
    setup(&secrets, &authority, &["node-1", "node-2", "node-3"]);
    let files = files("node-1");
    let anew = MeshTls::load(&files[0], &files[1], &files[2]).expect("usable");
    assert!(
        handshake(&anew, &two.0, "node-2").is_err(),
        "a lost authority is another one, and all certificates are new"
    );
}

/// A TLS handshake between two nodes that verify each other; the client dials the server by `name`.
fn handshake(client: &MeshTls, server: &MeshTls, name: &'static str) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = tokio_rustls::rustls::pki_types::ServerName::try_from(name).expect("a name");
        let (dialled, taken) =
            tokio::join!(client.connector.connect(name, near), server.acceptor.accept(far));
        dialled.map(drop).and(taken.map(drop)).map_err(|why| why.to_string())
    })
}

#[test]
fn the_database_gets_its_roles_and_passwords() {
    let postgres = crate::postgres::shared();
    let database = postgres.database();
    let roles = Server::cli(&["store", "roles"]).stdout;
    assert_eq!(
        String::from_utf8(roles).expect("text"),
        read("src/persistence/store/postgres/sql/roles.sql"),
        "what compose mounts"
    );
    // Roles are server-wide and shared with other tests, so they are created in the same serialised
    // way.
    postgres.make_roles(&database, &read("src/persistence/store/postgres/sql/roles.sql"));
    let mut command = Command::new("sh");
    let services = services();
    let service =
        services.iter().find(|service| service.name == "postgres").expect("postgres").environment();
    command.arg(root().join("docker/passwords")).envs(&service).env("POSTGRES_DB", &database);
    command.env("PGHOST", "127.0.0.1").env("PGPORT", postgres.port.to_string());
    let done = command.output().expect("sh runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let query = "SELECT count(*) FROM pg_authid WHERE rolname LIKE 'rollmill\\_%' AND rolpassword \
                 LIKE 'SCRAM-SHA-256$%'";
    assert_eq!(postgres.psql(&database, query).expect("asked").trim(), "3");
}

#[test]
fn the_two_configurations_of_nginx_differ_in_addresses_alone() {
    let rules = |file: &str| {
        let text = read(file);
        text[text.find("map $http_upgrade").expect("what both have")..].to_owned()
    };
    let here = (1..=3).fold(rules("config/nginx.conf"), |text, node| {
        text.replace(&format!("127.0.0.1:@HTTP{node}@"), &format!("node-{node}:8080"))
    });
    assert_eq!(here.replace("127.0.0.1:@FRONT@", "8080"), rules("docker/nginx.conf"));
}

#[test]
fn nginx_sends_every_write_to_where_it_is_retried() {
    let nginx = read("docker/nginx.conf");
    let writes = nginx.lines().find_map(|line| line.trim().strip_prefix("location ~ "));
    let writes = writes.and_then(|rest| rest.strip_suffix(" {")).expect("the location of writes");
    let writes = regex::Regex::new(writes).expect("a pattern");
    let interface: serde_json::Value =
        serde_json::from_str(&read("src/gateway/openapi.json")).expect("JSON");
    let paths = interface["paths"].as_object().expect("paths");
    let reads = ["/api/v1/", "/flags", "/decide", "/debug/", "/v1/quarantine", "/v1/archive"];
    // A change of a replay is made once, and events of the Measurement Protocol may have no ids.
    let once = ["/v1/replays", "/mp/collect"];
    let elsewhere = |path: &str| reads.iter().chain(&once).any(|start| path.starts_with(start));
    let posts = paths.iter().filter(|(_, methods)| methods.get("post").is_some());
    let posts: Vec<&str> = posts.map(|(path, _)| path.as_str()).collect();
    assert!(posts.len() > 30, "{posts:?}");
    for path in posts {
        assert_eq!(writes.is_match(path), !elsewhere(path), "{path}");
    }
    for path in ["/", "/v1/query", "/v1/ws", "/v1/boards/a", "/metrics", "/assets/e/"] {
        assert!(!writes.is_match(path), "{path}");
    }
}

#[test]
fn nginx_takes_its_configuration() {
    let tools = root().join("data-sets/tools/bin/nginx");
    let installed = ["/usr/sbin/nginx", "/usr/bin/nginx"].map(PathBuf::from);
    let Some(nginx) = std::iter::once(tools).chain(installed).find(|path| path.exists()) else {
        eprintln!("skipped: there is no nginx; scripts/install-test-tools gets it");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("nginx.conf");
    // nginx resolves names when it reads the configuration, and these names do not exist here.
    let text = (1..=3).fold(read("docker/nginx.conf"), |text, node| {
        text.replace(&format!("node-{node}:"), "127.0.0.1:")
    });
    std::fs::write(&config, text.replace("/tmp/", &format!("{}/", dir.path().display())))
        .expect("written");
    let run = Command::new(nginx)
        .arg("-t")
        .arg("-p")
        .arg(dir.path())
        .arg("-c")
        .arg(&config)
        .output()
        .expect("nginx runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn health_is_readiness_as_an_exit_code() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    wait_until("ready", || server.get("/readyz").0 == 200);
    let run = |args: &[&str]| {
        let done = Server::cli(&[&["health"], args].concat());
        (done.status.code(), String::from_utf8([done.stdout, done.stderr].concat()).expect("text"))
    };
    assert_eq!(run(&["--url", &server.url]), (Some(0), "ready\n".to_owned()));
    assert_eq!(run(&["--url", &server.url, "--role", "gateway"]).0, Some(0));
    assert_eq!(run(&["--url", &server.url, "--role", "everything"]).0, Some(2));
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let (code, said) = run(&["--url", &nobody]);
    assert!(code == Some(1) && said.contains("cannot reach") && said.contains(&nobody), "{said}");
    let (code, said) = run(&["--url", &format!("{}/v1", server.url)]);
    assert!(code == Some(1) && said.contains("not ready"), "{said}");
}
