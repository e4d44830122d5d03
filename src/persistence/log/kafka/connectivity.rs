//! Checks whether the cluster is reachable before anything else is done: Kafka's client retries
//! forever and reports the reason only through its error callback.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::settings::KafkaConnection;
use crate::clock::Stopwatch;
use crate::persistence::log::LogOpenError;

/// Timeout of the first request; each further one gets twice as long. A refusal shows soon, and a
/// slow network gets its time.
const FIRST_TIMEOUT: Duration = Duration::from_millis(100);

/// How long the client's callbacks are served after a failed request.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(10);

/// Collects the errors that the client reports through its callback.
#[derive(Debug, Default)]
struct ClientErrors(Mutex<LastErrors>);

#[derive(Debug, Default, Clone)]
struct LastErrors {
    /// Why no broker was reached.
    unreachable: Option<String>,
    /// A problem that retrying cannot fix.
    rejected: Option<String>,
}

impl LastErrors {
    fn observe(&mut self, code: Option<RDKafkaErrorCode>, reason: &str) {
        match code {
            Some(
                RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SaslAuthenticationFailed
                | RDKafkaErrorCode::UnsupportedSASLMechanism,
            ) => {
                let remedy =
                    "check sasl.mechanism, sasl.username and sasl.password in kafka.properties";
                self.rejected =
                    Some(format!("the brokers do not let this node in: {reason}: {remedy}"));
            }
            Some(RDKafkaErrorCode::SSL) => {
                let remedy = "check ssl.ca.location in kafka.properties (the authority that \
                               signed the brokers' certificates), and that the certificates are \
                               for the hosts of kafka.brokers";
                self.rejected = Some(format!("TLS fails: {reason}: {remedy}"));
            }
            // Only summarises what was reported for each broker.
            Some(RDKafkaErrorCode::AllBrokersDown) => {}
            _ => self.unreachable = Some(reason.to_owned()),
        }
    }
}

impl ClientContext for ClientErrors {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .observe(error.rdkafka_error_code(), reason);
    }

    // The caller reports the same as its result.
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "Kafka");
    }
}

impl ConsumerContext for ClientErrors {}

/// Requests the topic's metadata, within `kafka.timeout`. Does not check whether the topic
/// exists and is right.
///
/// # Errors
/// [`LogOpenError::Unavailable`] if no broker answers, [`LogOpenError::Invalid`] if one rejects
/// this node or its settings.
pub fn check_connectivity(connection: &KafkaConnection) -> Result<(), LogOpenError> {
    let refused = |e: KafkaError| {
        LogOpenError::Invalid(format!(
            "Kafka's client refuses the settings (kafka.properties): {e}"
        ))
    };
    let client: BaseConsumer<ClientErrors> = connection
        .offset_client_config()
        .create_with_context(ClientErrors::default())
        .map_err(refused)?;
    let (watch, mut timeout) = (Stopwatch::start(), FIRST_TIMEOUT);
    loop {
        let left = connection.timeout.saturating_sub(watch.elapsed());
        let answer = client.fetch_metadata(Some(&connection.topic), timeout.min(left));
        let Err(error) = answer else { return Ok(()) };
        // Serves the client's callbacks; there is nothing to fetch. A poll without a timeout would
        // return after the first line of its log.
        while client.poll(DRAIN_TIMEOUT).is_some() {}
        let errors = client.context().0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(wrong) = errors.rejected {
            return Err(LogOpenError::Invalid(format!("Kafka at {}: {wrong}", connection.brokers)));
        }
        if timeout >= left {
            let why = errors.unreachable.unwrap_or_else(|| error.to_string());
            return Err(LogOpenError::Unavailable(format!(
                "Kafka at {} cannot be reached: {why}: do the brokers run, and is kafka.brokers \
                 right?",
                connection.brokers
            )));
        }
        timeout *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KafkaProperties;

    fn at(brokers: &str, properties: &str) -> Result<(), LogOpenError> {
        let properties = KafkaProperties::parse(properties).expect("settings");
        let timeout = Duration::from_secs(2);
        check_connectivity(&KafkaConnection {
            brokers: brokers.to_owned(),
            topic: "t".to_owned(),
            properties,
            timeout,
        })
    }

    #[test]
    fn what_is_not_there_is_away_with_the_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let Err(LogOpenError::Unavailable(silent)) = at(&address, "") else {
            panic!("nobody answers")
        };
        assert!(silent.contains(&address) && silent.contains("kafka.brokers"), "{silent}");
        // A port of its own that was closed could be another test's by now.
        let Err(LogOpenError::Unavailable(closed)) = at("127.0.0.1:1", "") else {
            panic!("nobody listens")
        };
        assert!(closed.contains("Connection refused"), "{closed}");
        let Err(LogOpenError::Unavailable(unknown)) = at("no-such-host.invalid:9092", "") else {
            panic!("no such host")
        };
        assert!(unknown.contains("no-such-host.invalid"), "{unknown}");
    }

    #[test]
    fn settings_that_the_client_refuses_are_wrong_for_good() {
        let refused = at("127.0.0.1:1", "no.such.setting=1");
        assert!(
            matches!(&refused, Err(LogOpenError::Invalid(why)) if why.contains("kafka.properties")),
            "{refused:?}"
        );
    }

    #[test]
    fn refusals_are_told_from_absence() {
        let said = |code, reason: &str| {
            let mut said = LastErrors::default();
            said.observe(Some(code), reason);
            (said.unreachable, said.rejected)
        };
        assert_eq!(
            said(RDKafkaErrorCode::BrokerTransportFailure, "refused"),
            (Some("refused".to_owned()), None)
        );
        assert_eq!(said(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down"), (None, None));
        for code in [RDKafkaErrorCode::Authentication, RDKafkaErrorCode::SaslAuthenticationFailed] {
            assert!(said(code, "no").1.is_some_and(|why| why.contains("sasl.password")));
        }
        assert!(
            said(RDKafkaErrorCode::SSL, "no").1.is_some_and(|why| why.contains("ssl.ca.location"))
        );
    }
}
