//! Variables that Kubernetes sets in every pod of a namespace for each of its Services (in the form
//! of Docker's container links).
//!
//! A Service called `rollmill` or `rollmill-mesh` produces names with our prefix. They are neither
//! settings nor mistakes.
//! settings, and no mistakes.

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Whether Kubernetes sets this variable for a Service.
pub(super) fn is_service_link(name: &str, value: &str) -> bool {
    if name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
    {
        return true;
    }
    // A name on `_PORT` could be a misspelt setting, so the value has to look like a link.
    if name.ends_with("_PORT")
        && PROTOCOLS.iter().any(|p| value.starts_with(&format!("{}://", p.to_lowercase())))
    {
        return true;
    }
    let base =
        ["_PROTO", "_PORT", "_ADDR"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let Some((rest, protocol)) = base.rsplit_once('_') else { return false };
    let port = rest.rsplit_once("_PORT_").map(|(_, number)| number);
    PROTOCOLS.contains(&protocol) && port.is_some_and(|number| number.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_a_service_are_told_from_settings() {
        for (name, value) in [
            ("ROLLMILL_SERVICE_HOST", "10.96.0.7"),
            ("ROLLMILL_SERVICE_PORT", "8080"),
            ("ROLLMILL_SERVICE_PORT_HTTP", "8080"),
            ("ROLLMILL_PORT", "tcp://10.96.0.7:8080"),
            ("ROLLMILL_PORT_8080_TCP", "tcp://10.96.0.7:8080"),
            ("ROLLMILL_PORT_8080_TCP_PROTO", "tcp"),
            ("ROLLMILL_PORT_8080_TCP_PORT", "8080"),
            ("ROLLMILL_PORT_8080_TCP_ADDR", "10.96.0.7"),
            ("ROLLMILL_0_SERVICE_HOST", "10.96.0.8"),
            ("ROLLMILL_MESH_PORT_7946_UDP_ADDR", "10.96.0.9"),
        ] {
            assert!(is_service_link(name, value), "{name}");
        }
        for (name, value) in [
            ("ROLLMILL_PORT", "8080"),
            ("ROLLMILL_SERVER_PORT", "8080"),
            ("ROLLMILL_SERVER_LISTEN", "tcp://x"),
            ("ROLLMILL_PORT_TCP", "x"),
            ("ROLLMILL_PORT_HTTP_TCP_ADDR", "x"),
        ] {
            assert!(!is_service_link(name, value), "{name}={value}");
        }
    }
}
